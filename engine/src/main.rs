//! The binary `wellhead`.

use std::process::ExitCode;

// Many small allocations on many threads, each freed where it was made: what mimalloc is fast at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    engine::cli::main()
}

//! Golden transcripts, one folder per dialect: what is sent and what is answered, to the byte.

use std::path::Path;

use protocol::dialect::DialectId;
use tests::sim::golden;

#[test]
fn every_dialect_speaks_as_its_transcripts_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    let mut differences = Vec::new();
    for dialect in DialectId::ALL {
        let folder = root.join(dialect.name());
        let transcripts =
            std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let mut played = 0;
        for transcript in transcripts {
            let path = transcript.expect("a folder that can be read").path();
            let text = std::fs::read_to_string(&path).expect("text");
            if let Err(difference) = golden::play(&text) {
                differences.push(format!("{}: {difference}", path.display()));
            }
            played += 1;
        }
        assert!(played > 0, "{} has no transcript", folder.display());
    }
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn a_transcript_that_says_otherwise_is_found_out() {
    let request = "> GET /health HTTP/1.1\n> Host: x\n>\n";
    for (answer, why) in [
        ("< HTTP/1.1 404 Not Found\n", "wanted"),
        ("< HTTP/1.1 200 OK\n", "wanted None"),
        ("", "more than the transcript says"),
    ] {
        let difference = golden::play(&format!("{request}{answer}")).expect_err("a difference");
        assert!(difference.contains(why), "{difference}");
    }
}

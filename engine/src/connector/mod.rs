//! What stands beside the shards: threads that may wait, and speak with shards only through the mesh.

pub mod accounts;
pub mod store;

//! stub
use super::*;
/// stub
pub struct Loaded {
    /// x
    pub settings: Settings,
    /// x
    pub notes: Vec<String>,
    /// x
    pub deferred: Vec<String>,
    /// x
    pub secrets_from: Vec<String>,
}
/// stub
pub struct Process;
/// stub
pub fn load(_p: &std::path::Path, _e: &Process) -> Result<Loaded, Vec<String>> {
    Err(vec![])
}

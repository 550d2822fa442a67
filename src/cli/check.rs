//! stub
pub(super) fn run(_config: &std::path::Path) -> u8 {
    1
}

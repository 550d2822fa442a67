//! The `chiton` binary.

fn main() {}

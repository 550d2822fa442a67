//! Compiles `opamp/v1/*.proto` with protox (no `protoc` needed) and prost-build.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["opamp/v1/opamp.proto", "opamp/v1/anyvalue.proto"];
    for file in files {
        println!("cargo::rerun-if-changed={file}");
    }
    let set = protox::compile(files, ["."])?;
    prost_build::Config::new()
        // Fields share the received buffer: no copy of a 1 MiB config body.
        .bytes(["."])
        // A stable order: the same map is the same bytes, so a digest of them means something.
        .btree_map(["."])
        .compile_fds(set)?;
    Ok(())
}

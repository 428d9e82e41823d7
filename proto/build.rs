//! Compiles the wire contracts with protox: no protoc is needed.
//!
//! Each package's descriptors are written beside its code, for reflection and for the test that compares them with
//! the published interface.

use std::env;
use std::fs;
use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);
    for (package, file) in [
        ("larder.v1", "larder/v1/larder.proto"),
        ("runtime.v1", "runtime/v1/image.proto"),
    ] {
        let descriptors = protox::compile([file], ["proto"])?;
        fs::write(
            out.join(format!("{package}.bin")),
            descriptors.encode_to_vec(),
        )?;
        // Messages with secrets get a Debug of their own, written beside the service.
        tonic_prost_build::configure()
            .skip_debug(["larder.v1.Credentials", "runtime.v1.AuthConfig"])
            .compile_fds(descriptors)?;
    }
    // One run for all that share messages. Only what is served needs its descriptors later.
    let served = "containerd/services/snapshots/v1/snapshots.proto";
    let snapshots = protox::compile([served], ["proto"])?;
    fs::write(
        out.join("containerd.services.snapshots.v1.bin"),
        snapshots.encode_to_vec(),
    )?;
    let descriptors = protox::compile(
        [
            served,
            "containerd/services/content/v1/content.proto",
            "containerd/services/events/v1/events.proto",
            "containerd/services/images/v1/images.proto",
            "containerd/services/leases/v1/leases.proto",
            "containerd/events/image.proto",
        ],
        ["proto"],
    )?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    // What is asked of a container runtime: a service of the same name as one of those served, so in a folder of its own.
    let descriptors = protox::compile(["runtime/v1/containers.proto"], ["proto"])?;
    let folder = out.join("containers");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("runtime.v1.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .build_server(false)
        .out_dir(folder)
        .compile_fds(descriptors)?;
    Ok(())
}

//! Our descriptors of `runtime.v1` and `containerd.services.snapshots.v1` against the published interfaces.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use larder::cri::proto::DESCRIPTORS;
use larder::runtime::CONTAINER_DESCRIPTORS;
use larder::snapshotter;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// Facts of `k8s.io/cri-api` v0.37.0, `pkg/apis/runtime/v1/api.proto`: every field of the messages that larder
/// speaks, as `Message.field = number: type`.
const PUBLISHED: &str = "\
VersionRequest.version = 1: string\n\
VersionResponse.version = 1: string\n\
VersionResponse.runtime_name = 2: string\n\
VersionResponse.runtime_version = 3: string\n\
VersionResponse.runtime_api_version = 4: string\n\
PodSandboxMetadata.name = 1: string\n\
PodSandboxMetadata.uid = 2: string\n\
PodSandboxMetadata.namespace = 3: string\n\
PodSandboxMetadata.attempt = 4: uint32\n\
PodSandboxConfig.metadata = 1: PodSandboxMetadata\n\
PodSandboxConfig.hostname = 2: string\n\
PodSandboxConfig.log_directory = 3: string\n\
PodSandboxConfig.dns_config = 4: DNSConfig\n\
PodSandboxConfig.port_mappings = 5: repeated PortMapping\n\
PodSandboxConfig.labels = 6: map<string,string>\n\
PodSandboxConfig.annotations = 7: map<string,string>\n\
PodSandboxConfig.linux = 8: LinuxPodSandboxConfig\n\
PodSandboxConfig.windows = 9: WindowsPodSandboxConfig\n\
ImageSpec.image = 1: string\n\
ImageSpec.annotations = 2: map<string,string>\n\
ImageSpec.user_specified_image = 18: string\n\
ImageSpec.runtime_handler = 19: string\n\
ImageSpec.image_ref = 20: string\n\
ImageFilter.image = 1: ImageSpec\n\
ListImagesRequest.filter = 1: ImageFilter\n\
ListImagesResponse.images = 1: repeated Image\n\
StreamImagesRequest.filter = 1: ImageFilter\n\
StreamImagesResponse.images = 1: repeated Image\n\
Image.id = 1: string\n\
Image.repo_tags = 2: repeated string\n\
Image.repo_digests = 3: repeated string\n\
Image.size = 4: uint64\n\
Image.uid = 5: Int64Value\n\
Image.username = 6: string\n\
Image.spec = 7: ImageSpec\n\
Image.pinned = 8: bool\n\
ImageStatusRequest.image = 1: ImageSpec\n\
ImageStatusRequest.verbose = 2: bool\n\
ImageStatusResponse.image = 1: Image\n\
ImageStatusResponse.info = 2: map<string,string>\n\
AuthConfig.username = 1: string\n\
AuthConfig.password = 2: string\n\
AuthConfig.auth = 3: string\n\
AuthConfig.server_address = 4: string\n\
AuthConfig.identity_token = 5: string\n\
AuthConfig.registry_token = 6: string\n\
PullImageRequest.image = 1: ImageSpec\n\
PullImageRequest.auth = 2: AuthConfig\n\
PullImageRequest.sandbox_config = 3: PodSandboxConfig\n\
PullImageResponse.image_ref = 1: string\n\
RemoveImageRequest.image = 1: ImageSpec\n\
ImageFsInfoResponse.image_filesystems = 1: repeated FilesystemUsage\n\
ImageFsInfoResponse.container_filesystems = 2: repeated FilesystemUsage\n\
FilesystemUsage.timestamp = 1: int64\n\
FilesystemUsage.fs_id = 2: FilesystemIdentifier\n\
FilesystemUsage.used_bytes = 3: UInt64Value\n\
FilesystemUsage.inodes_used = 4: UInt64Value\n\
FilesystemIdentifier.mountpoint = 1: string\n\
UInt64Value.value = 1: uint64\n\
Int64Value.value = 1: int64";

/// Published fields that larder does not read.
const LEFT_OUT: [&str; 4] = [
    "PodSandboxConfig.dns_config = 4: DNSConfig",
    "PodSandboxConfig.port_mappings = 5: repeated PortMapping",
    "PodSandboxConfig.linux = 8: LinuxPodSandboxConfig",
    "PodSandboxConfig.windows = 9: WindowsPodSandboxConfig",
];

/// The published methods that larder answers, as `Service.Method request -> answer`.
const METHODS: [&str; 7] = [
    "ImageService.ImageFsInfo ImageFsInfoRequest -> ImageFsInfoResponse",
    "ImageService.ImageStatus ImageStatusRequest -> ImageStatusResponse",
    "ImageService.ListImages ListImagesRequest -> ListImagesResponse",
    "ImageService.PullImage PullImageRequest -> PullImageResponse",
    "ImageService.RemoveImage RemoveImageRequest -> RemoveImageResponse",
    "ImageService.StreamImages StreamImagesRequest -> stream StreamImagesResponse",
    "RuntimeService.Version VersionRequest -> VersionResponse",
];

/// As [`PUBLISHED`], of what larder reads of containers and pods.
const PUBLISHED_OF_CONTAINERS: &str = "\
ImageSpec.image = 1: string\n\
ImageSpec.user_specified_image = 18: string\n\
ImageSpec.image_ref = 20: string\n\
ListContainersResponse.containers = 1: repeated Container\n\
ContainerMetadata.name = 1: string\n\
Container.id = 1: string\n\
Container.pod_sandbox_id = 2: string\n\
Container.metadata = 3: ContainerMetadata\n\
Container.image = 4: ImageSpec\n\
Container.image_ref = 5: string\n\
Container.image_id = 10: string\n\
ContainerStatusRequest.container_id = 1: string\n\
ContainerStatusResponse.status = 1: ContainerStatus\n\
ContainerStatus.mounts = 14: repeated Mount\n\
Mount.image = 9: ImageSpec\n\
PodSandboxMetadata.name = 1: string\n\
PodSandboxMetadata.namespace = 3: string\n\
ListPodSandboxResponse.items = 1: repeated PodSandbox\n\
PodSandbox.id = 1: string\n\
PodSandbox.metadata = 2: PodSandboxMetadata\n\
PodSandboxStatusRequest.pod_sandbox_id = 1: string\n\
PodSandboxStatusRequest.verbose = 2: bool\n\
PodSandboxStatusResponse.info = 2: map<string,string>\n\
StatusRequest.verbose = 1: bool\n\
StatusResponse.info = 2: map<string,string>";

/// The published methods that larder asks of a container runtime, besides those of the image service.
const METHODS_OF_CONTAINERS: [&str; 5] = [
    "RuntimeService.ContainerStatus ContainerStatusRequest -> ContainerStatusResponse",
    "RuntimeService.ListContainers ListContainersRequest -> ListContainersResponse",
    "RuntimeService.ListPodSandbox ListPodSandboxRequest -> ListPodSandboxResponse",
    "RuntimeService.PodSandboxStatus PodSandboxStatusRequest -> PodSandboxStatusResponse",
    "RuntimeService.Status StatusRequest -> StatusResponse",
];

/// Facts of containerd's API v1.12.0, `api/services/snapshots/v1/snapshots.proto` and `api/types/mount.proto`.
const SNAPSHOTS: &str = "\
Mount.type = 1: string\n\
Mount.source = 2: string\n\
Mount.target = 3: string\n\
Mount.options = 4: repeated string\n\
PrepareSnapshotRequest.snapshotter = 1: string\n\
PrepareSnapshotRequest.key = 2: string\n\
PrepareSnapshotRequest.parent = 3: string\n\
PrepareSnapshotRequest.labels = 4: map<string,string>\n\
PrepareSnapshotResponse.mounts = 1: repeated Mount\n\
ViewSnapshotRequest.snapshotter = 1: string\n\
ViewSnapshotRequest.key = 2: string\n\
ViewSnapshotRequest.parent = 3: string\n\
ViewSnapshotRequest.labels = 4: map<string,string>\n\
ViewSnapshotResponse.mounts = 1: repeated Mount\n\
MountsRequest.snapshotter = 1: string\n\
MountsRequest.key = 2: string\n\
MountsResponse.mounts = 1: repeated Mount\n\
RemoveSnapshotRequest.snapshotter = 1: string\n\
RemoveSnapshotRequest.key = 2: string\n\
CommitSnapshotRequest.snapshotter = 1: string\n\
CommitSnapshotRequest.name = 2: string\n\
CommitSnapshotRequest.key = 3: string\n\
CommitSnapshotRequest.labels = 4: map<string,string>\n\
CommitSnapshotRequest.parent = 5: string\n\
StatSnapshotRequest.snapshotter = 1: string\n\
StatSnapshotRequest.key = 2: string\n\
Info.name = 1: string\n\
Info.parent = 2: string\n\
Info.kind = 3: Kind\n\
Info.created_at = 4: Timestamp\n\
Info.updated_at = 5: Timestamp\n\
Info.labels = 6: map<string,string>\n\
StatSnapshotResponse.info = 1: Info\n\
UpdateSnapshotRequest.snapshotter = 1: string\n\
UpdateSnapshotRequest.info = 2: Info\n\
UpdateSnapshotRequest.update_mask = 3: FieldMask\n\
UpdateSnapshotResponse.info = 1: Info\n\
ListSnapshotsRequest.snapshotter = 1: string\n\
ListSnapshotsRequest.filters = 2: repeated string\n\
ListSnapshotsResponse.info = 1: repeated Info\n\
UsageRequest.snapshotter = 1: string\n\
UsageRequest.key = 2: string\n\
UsageResponse.size = 1: int64\n\
UsageResponse.inodes = 2: int64\n\
CleanupRequest.snapshotter = 1: string";

/// As in [`METHODS`].
const SNAPSHOT_METHODS: [&str; 10] = [
    "Snapshots.Cleanup CleanupRequest -> Empty",
    "Snapshots.Commit CommitSnapshotRequest -> Empty",
    "Snapshots.List ListSnapshotsRequest -> stream ListSnapshotsResponse",
    "Snapshots.Mounts MountsRequest -> MountsResponse",
    "Snapshots.Prepare PrepareSnapshotRequest -> PrepareSnapshotResponse",
    "Snapshots.Remove RemoveSnapshotRequest -> Empty",
    "Snapshots.Stat StatSnapshotRequest -> StatSnapshotResponse",
    "Snapshots.Update UpdateSnapshotRequest -> UpdateSnapshotResponse",
    "Snapshots.Usage UsageRequest -> UsageResponse",
    "Snapshots.View ViewSnapshotRequest -> ViewSnapshotResponse",
];

/// The files of a package that are ours, without those of Google's.
fn set(descriptors: &[u8]) -> FileDescriptorSet {
    let mut set = FileDescriptorSet::decode(descriptors).unwrap();
    set.file.retain(|file| file.package() != "google.protobuf");
    set
}

fn fields(descriptors: &[u8], packages: &[&str]) -> BTreeSet<String> {
    let mut fields = BTreeSet::new();
    for file in set(descriptors).file {
        assert!(packages.contains(&file.package()), "{}", file.package());
        for message in &file.message_type {
            for field in &message.field {
                let (message_name, field_name) = (message.name(), field.name());
                fields.insert(format!(
                    "{message_name}.{field_name} = {}: {}",
                    field.number(),
                    type_of(field, message)
                ));
            }
        }
    }
    fields
}

fn methods(descriptors: &[u8]) -> Vec<String> {
    let mut methods = Vec::new();
    for file in set(descriptors).file {
        for service in &file.service {
            for method in &service.method {
                let short = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
                let stream = if method.server_streaming() {
                    "stream "
                } else {
                    ""
                };
                assert!(!method.client_streaming());
                methods.push(format!(
                    "{}.{} {} -> {stream}{}",
                    service.name(),
                    method.name(),
                    short(method.input_type()),
                    short(method.output_type())
                ));
            }
        }
    }
    methods.sort_unstable();
    methods
}

/// The type as a proto file writes it.
fn type_of(field: &FieldDescriptorProto, message: &DescriptorProto) -> String {
    let short = |name: &str| name.rsplit('.').next().unwrap().to_owned();
    let one = match field.r#type() {
        Type::String => "string".to_owned(),
        Type::Bool => "bool".to_owned(),
        Type::Int64 => "int64".to_owned(),
        Type::Uint64 => "uint64".to_owned(),
        Type::Uint32 => "uint32".to_owned(),
        Type::Int32 => "int32".to_owned(),
        Type::Bytes => "bytes".to_owned(),
        Type::Enum => short(field.type_name()),
        Type::Message => {
            let name = short(field.type_name());
            if let Some(entry) = message
                .nested_type
                .iter()
                .find(|entry| entry.name() == name)
            {
                let parts: Vec<String> = entry
                    .field
                    .iter()
                    .map(|part| type_of(part, entry))
                    .collect();
                return format!("map<{}>", parts.join(","));
            }
            name
        }
        other => panic!("{other:?} is not expected"),
    };
    match field.label() {
        Label::Repeated => format!("repeated {one}"),
        _ => one,
    }
}

#[test]
fn fields_are_the_published_ones() {
    let published: BTreeSet<&str> = PUBLISHED.lines().collect();
    let ours = fields(DESCRIPTORS, &["runtime.v1"]);
    let ours: BTreeSet<&str> = ours.iter().map(String::as_str).collect();
    let invented: Vec<_> = ours.difference(&published).collect();
    assert!(invented.is_empty(), "not in the interface: {invented:#?}");
    let missing: Vec<_> = published.difference(&ours).copied().collect();
    assert_eq!(missing, {
        let mut left_out = LEFT_OUT;
        left_out.sort_unstable();
        left_out
    });
}

#[test]
fn methods_are_the_published_ones() {
    assert_eq!(methods(DESCRIPTORS), METHODS);
}

#[test]
fn snapshots_are_those_of_containerd() {
    let packages = ["containerd.services.snapshots.v1", "containerd.types"];
    let ours = fields(snapshotter::proto::DESCRIPTORS, &packages);
    let published: BTreeSet<String> = SNAPSHOTS.lines().map(str::to_owned).collect();
    assert_eq!(ours, published);
    assert_eq!(methods(snapshotter::proto::DESCRIPTORS), SNAPSHOT_METHODS);
}

#[test]
fn what_is_asked_about_containers_is_published() {
    let published: BTreeSet<String> = PUBLISHED_OF_CONTAINERS.lines().map(str::to_owned).collect();
    assert_eq!(fields(CONTAINER_DESCRIPTORS, &["runtime.v1"]), published);
    assert_eq!(methods(CONTAINER_DESCRIPTORS), METHODS_OF_CONTAINERS);
}

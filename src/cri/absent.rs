//! What is said of calls that nobody here serves. Pure. A bare `Unimplemented` would leave an operator to guess which of
//! two endpoints is set wrongly.

/// Longest name of a call that is repeated.
const MAX_NAME: usize = 128;

/// The message for a call by its path, `/package.Service/Method`.
pub(super) fn message(path: &str) -> String {
    let call = path.strip_prefix('/').unwrap_or(path);
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/');
    if call.is_empty() || call.len() > MAX_NAME || !call.bytes().all(plain) {
        return "larder serves no such call".to_owned();
    }
    match call.split('/').next().unwrap_or_default() {
        "runtime.v1.RuntimeService" => format!(
            "{call}: larder serves images only, containers are the runtime's: give kubelet the runtime's socket, such as \
             unix:///run/containerd/containerd.sock, as containerRuntimeEndpoint and this one as imageServiceEndpoint; \
             give crictl --runtime-endpoint and --image-endpoint likewise"
        ),
        "runtime.v1alpha2.ImageService" | "runtime.v1alpha2.RuntimeService" => format!(
            "{call}: larder speaks runtime.v1, which kubelet and crictl do since version 1.23: use a newer one"
        ),
        _ => format!(
            "{call}: larder serves no such call; if a newer larder does, update the agent and start it again"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_to_a_runtime_are_shown_the_way() {
        let text = message("/runtime.v1.RuntimeService/RunPodSandbox");
        for word in [
            "RunPodSandbox",
            "images only",
            "containerRuntimeEndpoint",
            "imageServiceEndpoint",
            "--runtime-endpoint",
        ] {
            assert!(text.contains(word), "{text}");
        }
        assert!(message("/runtime.v1alpha2.ImageService/PullImage").contains("runtime.v1,"));
        assert!(message("/larder.v1.Images/Fly").starts_with("larder.v1.Images/Fly: "));
    }

    #[test]
    fn what_is_no_name_is_not_repeated() {
        for path in ["", "/", "/a b", "/a\nb", "/<b>/c", &"/a".repeat(200)] {
            assert_eq!(message(path), "larder serves no such call");
        }
    }
}

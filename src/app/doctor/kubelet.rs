//! Whether the kubelet's image calls come here, and can: pure.

use std::path::PathBuf;

use serde_json::{Map, Value};

use super::{Facts, Finding, Kubelet};

/// Where the kubelet's image calls go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ImageService {
    /// There is no kubelet here, or nobody can tell.
    Unknown,
    /// To the runtime.
    Runtime,
    /// To larder.
    Larder,
    /// To somebody else's socket.
    Other(PathBuf),
}

/// One setting: the flag, which wins, else the key of the files.
fn setting(kubelet: &Kubelet, flag: &str, value: Option<&Value>) -> Option<String> {
    let mut args = kubelet.args.iter();
    let mut given = None;
    while let Some(arg) = args.next() {
        match arg.strip_prefix(flag) {
            Some("") => given = args.next().cloned(),
            Some(rest) if rest.starts_with('=') => {
                given = rest.strip_prefix('=').map(str::to_owned);
            }
            _ => {}
        }
    }
    given.or_else(|| value?.as_str().map(str::to_owned))
}

/// All files in one; the first fault.
fn merged(kubelet: &Kubelet) -> Result<Map<String, Value>, String> {
    let mut merged = Map::new();
    for (path, text) in &kubelet.files {
        let fault = |cause: &dyn std::fmt::Display| format!("{}: {cause}", path.display());
        let text = text.as_ref().map_err(|cause| fault(cause))?;
        match serde_saphyr::from_str::<Value>(text).map_err(|cause| fault(&cause))? {
            Value::Object(keys) => merged.extend(keys),
            _ => return Err(fault(&"no KubeletConfiguration")),
        }
    }
    Ok(merged)
}

fn path(endpoint: &str) -> PathBuf {
    PathBuf::from(endpoint.strip_prefix("unix://").unwrap_or(endpoint))
}

pub(super) fn image_service(facts: &Facts) -> ImageService {
    let Some(kubelet) = &facts.kubelet else {
        return ImageService::Unknown;
    };
    // What a file that cannot be read says is told by `check`.
    let files = merged(kubelet).unwrap_or_default();
    let endpoint = setting(
        kubelet,
        "--image-service-endpoint",
        files.get("imageServiceEndpoint"),
    );
    match endpoint
        .filter(|endpoint| !endpoint.is_empty())
        .map(|endpoint| path(&endpoint))
    {
        None => ImageService::Runtime,
        Some(path) if path == facts.socket => ImageService::Larder,
        Some(path) => ImageService::Other(path),
    }
}

pub(super) fn check(facts: &Facts, images: &ImageService) -> Vec<Finding> {
    const NAME: &str = "kubelet";
    let Some(kubelet) = &facts.kubelet else {
        return vec![Finding::ok(NAME, "none on this machine")];
    };
    let files = match merged(kubelet) {
        Ok(files) => files,
        Err(fault) => {
            return vec![Finding::bad(
                NAME,
                fault,
                "mend the file, or run it as root",
            )];
        }
    };
    let socket = facts.socket.display();
    let mut findings = vec![match images {
        ImageService::Unknown => return Vec::new(),
        ImageService::Runtime => Finding::ok(NAME, "its image calls go to the runtime"),
        ImageService::Larder => Finding::ok(NAME, "its image calls come here"),
        ImageService::Other(path) => Finding::warn(
            NAME,
            format!(
                "its image calls go to {}, and this agent is at {socket}",
                path.display()
            ),
            format!("imageServiceEndpoint: unix://{socket}"),
        ),
    }];
    let runtime = setting(
        kubelet,
        "--container-runtime-endpoint",
        files.get("containerRuntimeEndpoint"),
    );
    if runtime.is_some_and(|endpoint| path(&endpoint) == facts.socket) {
        findings.push(Finding::bad(
            NAME,
            format!("containerRuntimeEndpoint is {socket}: larder runs no containers"),
            "containerRuntimeEndpoint: the socket of containerd",
        ));
    }
    if *images == ImageService::Larder
        && files.get("localStorageCapacityIsolation") == Some(&Value::Bool(false))
    {
        findings.push(Finding::warn(
            NAME,
            "with localStorageCapacityIsolation: false it does not see how full disks are, and never collects images",
            "leave it at its default, true",
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::Verdict::{self, Bad, Ok as Good, Warn};
    use super::*;

    fn facts(args: &[&str], files: &[&str]) -> Facts {
        let read = |text: &&str| (PathBuf::from("config.yaml"), Ok((*text).to_owned()));
        Facts {
            socket: PathBuf::from("/run/larder/larder.sock"),
            kubelet: Some(Kubelet {
                args: args.iter().map(|arg| (*arg).to_owned()).collect(),
                files: files.iter().map(read).collect(),
            }),
            ..Facts::default()
        }
    }

    fn verdicts(facts: &Facts) -> Vec<Verdict> {
        let findings = check(facts, &image_service(facts));
        findings.iter().map(|finding| finding.verdict).collect()
    }

    #[test]
    fn flags_win_over_files_and_later_files_over_earlier() {
        let here = "imageServiceEndpoint: unix:///run/larder/larder.sock\n";
        let there = r#"{"imageServiceEndpoint": "unix:///run/other.sock"}"#;
        for (args, files, images) in [
            (&[][..], &[][..], ImageService::Runtime),
            (&[], &[here], ImageService::Larder),
            (&[], &[there, here], ImageService::Larder),
            (
                &[],
                &[here, "imageServiceEndpoint: \"\"\n"],
                ImageService::Runtime,
            ),
            (
                &["--image-service-endpoint=/run/larder/larder.sock"],
                &[there],
                ImageService::Larder,
            ),
            (
                &["--image-service-endpoint", "unix:///x"],
                &[here],
                ImageService::Other(PathBuf::from("/x")),
            ),
            (&["--image-service-endpoint"], &[], ImageService::Runtime),
        ] {
            assert_eq!(
                image_service(&facts(args, files)),
                images,
                "{args:?} {files:?}"
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let here = "imageServiceEndpoint: unix:///run/larder/larder.sock\n";
        let blind = "localStorageCapacityIsolation: false\n";
        let both = "containerRuntimeEndpoint: unix:///run/larder/larder.sock\n";
        for (files, expected) in [
            (&[here][..], &[Good][..]),
            (&[here, blind], &[Good, Warn]),
            (&[blind], &[Good]),
            (&[both], &[Good, Bad]),
            (&["- no\n- map\n"], &[Bad]),
            (&["a: [\n"], &[Bad]),
        ] {
            assert_eq!(verdicts(&facts(&[], files)), expected, "{files:?}");
        }
        assert_eq!(verdicts(&Facts::default()), [Good]);
    }
}

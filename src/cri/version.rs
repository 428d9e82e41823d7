//! RuntimeService.Version: who answers here.

use super::proto::VersionResponse;

pub(super) fn answer() -> VersionResponse {
    VersionResponse {
        // Of the interface; all implementations have said this since the first.
        version: "0.1.0".to_owned(),
        runtime_name: "larder".to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: "v1".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_v1() {
        assert_eq!(answer().runtime_api_version, "v1");
    }
}

//! Between the wire's types and the cache's.

use tonic::Status;

use super::proto::{Image, ImageSpec, Int64Value};
use crate::cache::ImageView;
use crate::image::User;

/// Longest name that is looked at: 255 characters of repository, 128 of tag, a digest, and room for a host.
const MAX_NAME: usize = 1024;

/// The name in a request. None is the caller's mistake.
pub(super) fn name(spec: Option<ImageSpec>) -> Result<String, Status> {
    let name = spec.unwrap_or_default().image;
    if name.is_empty() {
        return Err(Status::invalid_argument(
            "the request names no image: set image.image",
        ));
    }
    if name.len() > MAX_NAME {
        return Err(Status::invalid_argument(format!(
            "the image name is {} bytes long, at most {MAX_NAME} are allowed",
            name.len()
        )));
    }
    Ok(name)
}

pub(super) fn image(view: &ImageView) -> Image {
    let (uid, username) = match &view.user {
        None => (None, String::new()),
        Some(User::Uid(uid)) => (Some(Int64Value { value: *uid }), String::new()),
        Some(User::Name(name)) => (None, name.clone()),
    };
    Image {
        id: view.id.to_string(),
        repo_tags: view.repo_tags.clone(),
        repo_digests: view.repo_digests.clone(),
        size: view.size.max(1),
        uid,
        username,
        spec: None,
        pinned: view.pinned,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::{Digest, ImageId, Platform};

    pub(crate) fn view(digit: char, tags: &[&str], digests: &[&str]) -> ImageView {
        let digest: Digest = format!("sha256:{}", digit.to_string().repeat(64))
            .parse()
            .unwrap();
        ImageView {
            id: ImageId(digest.clone()),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            repo_digests: digests.iter().map(|digest| (*digest).to_owned()).collect(),
            size: 0,
            created: None,
            user: None,
            platform: Platform::new("linux", "amd64", ""),
            pinned: false,
            pinned_here: false,
            staged: false,
            declared_by: Vec::new(),
            manifest: digest,
            pulled_at: 0,
            layers: Vec::new(),
        }
    }

    #[test]
    fn users_are_a_number_or_a_name() {
        let mut view = view('1', &[], &[]);
        assert_eq!(
            (image(&view).uid, image(&view).username),
            (None, String::new())
        );
        view.user = Some(User::Uid(1002));
        assert_eq!(
            (image(&view).uid, image(&view).username),
            (Some(Int64Value { value: 1002 }), String::new())
        );
        view.user = Some(User::Name("www-data".to_owned()));
        assert_eq!(
            (image(&view).uid, image(&view).username),
            (None, "www-data".to_owned())
        );
        assert_eq!(image(&view).size, 1, "never zero");
    }

    #[test]
    fn a_request_has_to_name_an_image() {
        let spec = |name: &str| {
            Some(ImageSpec {
                image: name.to_owned(),
                ..ImageSpec::default()
            })
        };
        assert_eq!(name(None).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert_eq!(
            name(spec("")).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        assert_eq!(
            name(spec(&"a".repeat(5000))).unwrap_err().code(),
            tonic::Code::InvalidArgument
        );
        assert_eq!(name(spec("busybox")).unwrap(), "busybox");
    }
}

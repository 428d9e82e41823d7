//! An image as doors show it, made from the store's record. Pure.

use std::collections::BTreeSet;
use std::sync::{Arc, PoisonError};

use crate::image::User;
use crate::store::Image;

use super::declared::Declared;
use super::names::Patterns;
use super::{ImageView, Inner};

/// What is known of images besides their records.
pub(super) struct Marks<'a> {
    pub(super) pinned: &'a Patterns,
    pub(super) declared: Arc<Declared>,
    /// Names and ids that the runtime wants to keep.
    pub(super) runtime: Arc<BTreeSet<String>>,
}

impl Marks<'_> {
    /// Whether the runtime wants to keep an image.
    pub(super) fn pinned_by_runtime(&self, image: &Image) -> bool {
        let names = image.names.iter().map(|name| &name.name);
        !self.runtime.is_empty()
            && (names.into_iter().any(|name| self.runtime.contains(name))
                || self.runtime.contains(&image.record.id.to_string()))
    }
}

impl Inner {
    /// What is known of images now besides their records.
    pub(super) fn marks(&self) -> Marks<'_> {
        let declared = self.declared.read().unwrap_or_else(PoisonError::into_inner);
        let runtime = self.runtime_pins.read();
        let runtime = runtime.unwrap_or_else(PoisonError::into_inner);
        Marks {
            pinned: &self.pinned,
            declared: declared.clone(),
            runtime: runtime.clone(),
        }
    }
}

pub(super) fn view(image: &Image, marks: &Marks<'_>) -> ImageView {
    let record = &image.record;
    let mut declared_by = BTreeSet::new();
    let mut pinned = record.pinned;
    for name in &image.names {
        pinned |= marks.pinned.matches(&name.name);
    }
    for declaration in marks
        .declared
        .of(image.names.iter().map(|name| name.name.as_str()))
    {
        pinned |= declaration.pinned;
        declared_by.insert(declaration.by.clone());
    }
    let (mut repo_digests, mut repo_tags): (Vec<String>, Vec<String>) = image
        .names
        .iter()
        .map(|name| name.name.clone())
        .partition(|name| name.contains('@'));
    repo_tags.sort_unstable();
    repo_digests.sort_unstable();
    ImageView {
        id: record.id.clone(),
        size: record.size.max(1),
        created: record.created.clone(),
        user: user(&record.user),
        platform: record.platform.clone(),
        pinned: pinned || marks.pinned_by_runtime(image),
        pinned_here: pinned,
        staged: record.staged,
        declared_by: declared_by.into_iter().collect(),
        manifest: record.manifest.clone(),
        pulled_at: record.pulled_at,
        layers: record.layers.clone(),
        repo_tags,
        repo_digests,
    }
}

/// The record keeps the user as text; a number is an id.
fn user(text: &str) -> Option<User> {
    let name = text.split_once(':').map_or(text, |(user, _group)| user);
    if name.is_empty() {
        return None;
    }
    Some(
        name.parse()
            .map_or_else(|_| User::Name(name.to_owned()), User::Uid),
    )
}

/// What the record keeps of a config's user.
pub(super) fn user_text(user: Option<&User>) -> String {
    match user {
        Some(User::Uid(uid)) => uid.to_string(),
        Some(User::Name(name)) => name.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name_without_its_group() {
        let table = [
            ("", None),
            ("0", Some(User::Uid(0))),
            ("1002", Some(User::Uid(1002))),
            ("1003:users", Some(User::Uid(1003))),
            ("www-data", Some(User::Name("www-data".into()))),
            ("www-data:www-data", Some(User::Name("www-data".into()))),
            (":group", None),
        ];
        for (text, want) in table {
            assert_eq!(user(text), want, "{text}");
        }
        for want in [None, Some(User::Uid(7)), Some(User::Name("root".into()))] {
            assert_eq!(user(&user_text(want.as_ref())), want);
        }
    }
}

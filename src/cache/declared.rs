//! Images that are declared to be held, by whoever decides that: which images of the store they are, and what follows.
//! Pure values; kept in memory only, since the one who declares does so anew at each start.

use std::collections::HashMap;

use crate::image::{Digest, Reference};

/// An image that somebody declares to be held on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declaration {
    /// As it was declared.
    pub reference: Reference,
    /// The top-level digest meant. `None`: the reference's own, else whatever has the tag.
    pub digest: Option<Digest>,
    /// Report it as pinned.
    pub pinned: bool,
    /// Who declares it, for people: `ClusterImagePrepull base`.
    pub by: String,
    /// Where he does so, for one who is of a namespace.
    pub namespace: Option<String>,
}

impl Declaration {
    /// The name that the declared image has in the store. One with a digest keeps it even when its tag moves on.
    fn name(&self) -> Option<String> {
        match self.digest.as_ref().or_else(|| self.reference.digest()) {
            Some(digest) => Some(self.reference.digested(digest)),
            None => self.reference.tagged(),
        }
    }
}

/// The whole set, by name.
#[derive(Debug, Default)]
pub(super) struct Declared {
    by_name: HashMap<String, Vec<Declaration>>,
}

impl Declared {
    pub(super) fn new(set: Vec<Declaration>) -> Self {
        let mut by_name: HashMap<String, Vec<Declaration>> = HashMap::new();
        for declaration in set {
            if let Some(name) = declaration.name() {
                let same = by_name.entry(name).or_default();
                if !same.contains(&declaration) {
                    same.push(declaration);
                }
            }
        }
        Declared { by_name }
    }

    /// The declarations of an image with these names.
    pub(super) fn of<'a>(
        &'a self,
        names: impl Iterator<Item = &'a str>,
    ) -> impl Iterator<Item = &'a Declaration> {
        names.filter_map(|name| self.by_name.get(name)).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declaration(reference: &str, digest: Option<char>, by: &str) -> Declaration {
        Declaration {
            reference: reference.parse().unwrap(),
            digest: digest.map(|digit| of(digit).parse().unwrap()),
            pinned: false,
            by: by.to_owned(),
            namespace: None,
        }
    }

    fn of(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn an_image_is_declared_by_the_digest_meant_else_by_its_tag() {
        let (a, b) = (of('a'), of('b'));
        let set = Declared::new(vec![
            declaration("app:1", Some('a'), "one"),
            declaration("app:1", None, "two"),
            declaration(&format!("app@{b}"), None, "three"),
            declaration("app:1", Some('a'), "one"),
        ]);
        let who = |names: &[&str]| -> Vec<String> {
            let found = set.of(names.iter().copied());
            found.map(|declaration| declaration.by.clone()).collect()
        };
        let digested = |digest: &str| format!("docker.io/library/app@{digest}");
        let tagged = "docker.io/library/app:1";
        assert_eq!(who(&[tagged, &digested(&a)]), ["two", "one"]);
        // The tag moved on.
        assert_eq!(who(&[&digested(&a)]), ["one"]);
        assert_eq!(who(&[tagged, &digested(&b)]), ["two", "three"]);
        assert!(who(&["docker.io/library/app:2"]).is_empty());
    }
}

//! containerd's filters, as far as they concern snapshots: `name==x,labels."a.b"!=c`, where all conditions of a filter
//! must hold, and one filter of several suffices. Pure.

use crate::cache::{SnapshotInfo, SnapshotKind};

/// Longest filter that is read.
const MAX_FILTER: usize = 16 << 10;
/// Filters of one request.
const MAX_FILTERS: usize = 64;

/// What a list is narrowed to.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filters(Vec<Vec<Condition>>);

#[derive(Debug, PartialEq, Eq)]
struct Condition {
    field: Field,
    test: Test,
}

#[derive(Debug, PartialEq, Eq)]
enum Field {
    Name,
    Parent,
    Kind,
    Label(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    Different(String),
}

impl Filters {
    /// # Errors
    /// What is not understood, in words.
    pub(super) fn parse(filters: &[String]) -> Result<Self, String> {
        if filters.len() > MAX_FILTERS {
            return Err(format!(
                "{} filters, at most {MAX_FILTERS} are taken",
                filters.len()
            ));
        }
        let parsed = filters.iter().map(|filter| {
            if filter.len() > MAX_FILTER {
                return Err(format!("a filter is longer than {MAX_FILTER} bytes"));
            }
            let mut scanner = Scanner { rest: filter };
            scanner.filter().map_err(|cause| {
                let shown: String = filter.chars().take(128).collect();
                format!("filter {shown:?}: {cause}")
            })
        });
        parsed.collect::<Result<_, _>>().map(Filters)
    }

    pub(super) fn matches(&self, info: &SnapshotInfo) -> bool {
        let all = |conditions: &Vec<Condition>| conditions.iter().all(|one| one.holds(info));
        self.0.is_empty() || self.0.iter().any(all)
    }
}

impl Condition {
    fn holds(&self, info: &SnapshotInfo) -> bool {
        let value = match &self.field {
            Field::Name => Some(info.name.as_str()),
            Field::Parent => Some(info.parent.as_deref().unwrap_or_default()),
            Field::Kind => Some(match info.kind {
                SnapshotKind::View => "View",
                SnapshotKind::Active => "Active",
                SnapshotKind::Committed => "Committed",
            }),
            Field::Label(name) => info.labels.get(name).map(String::as_str),
        };
        let value = value.unwrap_or_default();
        match &self.test {
            Test::Present => !value.is_empty(),
            Test::Equal(wanted) => value == wanted,
            Test::Different(wanted) => value != wanted,
        }
    }
}

struct Scanner<'a> {
    rest: &'a str,
}

impl Scanner<'_> {
    fn filter(&mut self) -> Result<Vec<Condition>, String> {
        let mut conditions = Vec::new();
        loop {
            self.space();
            if self.rest.is_empty() && conditions.is_empty() {
                return Ok(conditions);
            }
            conditions.push(self.condition()?);
            self.space();
            if self.rest.is_empty() {
                return Ok(conditions);
            }
            if !self.take(",") {
                return Err(format!("a comma is missing before {:?}", self.shown()));
            }
        }
    }

    fn condition(&mut self) -> Result<Condition, String> {
        let mut path = vec![self.word()?];
        while self.take(".") {
            path.push(self.word()?);
        }
        let mut words = path.into_iter();
        let head = words.next().unwrap_or_default();
        let rest: Vec<String> = words.collect();
        let field = match (head.as_str(), rest.as_slice()) {
            ("name", []) => Field::Name,
            ("parent", []) => Field::Parent,
            ("kind", []) => Field::Kind,
            ("labels", [_, ..]) => Field::Label(rest.join(".")),
            _ => return Err(format!("a snapshot has no field {head:?}")),
        };
        self.space();
        let test = if self.take("==") {
            Test::Equal(self.value()?)
        } else if self.take("!=") {
            Test::Different(self.value()?)
        } else if self.rest.starts_with("~=") {
            return Err("regular expressions are not supported".to_owned());
        } else {
            Test::Present
        };
        Ok(Condition { field, test })
    }

    /// A name: plain, or in quotes.
    fn word(&mut self) -> Result<String, String> {
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let plain = |c: char| c.is_alphanumeric() || c == '_';
        let end = self.rest.find(|c| !plain(c)).unwrap_or(self.rest.len());
        if end == 0 {
            return Err(format!("a field is missing before {:?}", self.shown()));
        }
        Ok(self.cut(end))
    }

    /// A value: up to the next comma, or in quotes.
    fn value(&mut self) -> Result<String, String> {
        self.space();
        if self.rest.starts_with('"') {
            return self.quoted();
        }
        let end = |c: char| c == ',' || c.is_whitespace();
        let end = self.rest.find(end).unwrap_or(self.rest.len());
        Ok(self.cut(end))
    }

    /// As Go quotes: a backslash before a quote or a backslash; others are not needed for names.
    fn quoted(&mut self) -> Result<String, String> {
        let mut out = String::new();
        let mut chars = self.rest.char_indices().skip(1);
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.cut(at.saturating_add(1));
                    return Ok(out);
                }
                '\\' => match chars.next() {
                    Some((_, escaped @ ('"' | '\\' | '/'))) => out.push(escaped),
                    _ => return Err("only \\\" and \\\\ are understood in quotes".to_owned()),
                },
                c => out.push(c),
            }
        }
        Err("a quote is missing".to_owned())
    }

    fn take(&mut self, text: &str) -> bool {
        match self.rest.strip_prefix(text) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn cut(&mut self, at: usize) -> String {
        let (head, rest) = self.rest.split_at_checked(at).unwrap_or((self.rest, ""));
        self.rest = rest;
        head.to_owned()
    }

    fn space(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn shown(&self) -> String {
        self.rest.chars().take(32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> SnapshotInfo {
        SnapshotInfo {
            name: "k8s.io/1/a".to_owned(),
            parent: Some("larder/sha256:x".to_owned()),
            kind: SnapshotKind::Committed,
            labels: [(
                "containerd.io/snapshot.ref".to_owned(),
                "sha256:y".to_owned(),
            )]
            .into(),
            created_at: 0,
            updated_at: 0,
        }
    }

    fn matches(filters: &[&str]) -> Result<bool, String> {
        let filters: Vec<String> = filters.iter().map(ToString::to_string).collect();
        Filters::parse(&filters).map(|filters| filters.matches(&snapshot()))
    }

    #[test]
    fn conditions_of_a_filter_must_all_hold_and_one_filter_suffices() {
        let reference = r#"labels."containerd.io/snapshot.ref"==sha256:y"#;
        let parent = r#"parent=="larder/sha256:x""#;
        for (filters, wanted) in [
            (vec![], true),
            (vec![""], true),
            (vec![reference], true),
            (vec![&*format!("{reference},{parent}")], true),
            (vec![&*format!("{reference},parent==\"\"")], false),
            (vec!["name==x", "kind==Committed"], true),
            (vec!["name==x"], false),
            (vec!["name != x , kind"], true),
            (vec!["labels.absent"], false),
            (vec!["labels.absent!=x"], true),
            (vec![r#"name=="k8s.io/1/a""#], true),
        ] {
            assert_eq!(matches(&filters), Ok(wanted), "{filters:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for filter in [
            "size==3",
            "labels==x",
            "name==a parent==b",
            "name~=a.*",
            "==x",
            "name==\"x",
            "labels.\"a",
            ",",
        ] {
            assert!(matches(&[filter]).is_err(), "{filter}");
        }
        let long = "x".repeat(MAX_FILTER + 1);
        assert!(matches(&[&long]).is_err());
        assert!(matches(&vec!["name"; MAX_FILTERS + 1]).is_err());
    }

    proptest::proptest! {
        #[test]
        fn no_filter_panics(text in "[a-z.\"\\\\=!~, é]{0,60}") {
            let _ = matches(&[&text]);
        }

        #[test]
        fn a_quoted_value_is_read_back(value in "[ -~é]{0,40}") {
            let quoted = format!("name==\"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
            let filters = Filters::parse(&[quoted]).unwrap();
            let info = SnapshotInfo { name: value, ..snapshot() };
            proptest::prop_assert!(filters.matches(&info));
        }
    }
}

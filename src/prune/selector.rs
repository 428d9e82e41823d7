//! Chooses images by the labels of their configs, with the operators of a Kubernetes label selector.

use std::collections::BTreeMap;

/// Requirements that must all hold. None at all: every image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    /// In no particular order.
    pub requirements: Vec<Requirement>,
}

/// A condition on one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key.
    pub key: String,
    /// How its value is judged.
    pub operator: Operator,
    /// For `In` and `NotIn`.
    pub values: Vec<String>,
}

/// How a label's value is judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// It is one of the values.
    In,
    /// It is none of the values, or absent.
    NotIn,
    /// It is there.
    Exists,
    /// It is not there.
    DoesNotExist,
}

impl Selector {
    /// Whether everything holds for these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.requirements.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            let listed = value.is_some_and(|value| requirement.values.contains(value));
            match requirement.operator {
                Operator::In => listed,
                Operator::NotIn => !listed,
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect()
        };
        let selector = |operator, values: &[&str]| Selector {
            requirements: vec![Requirement {
                key: "stage".to_owned(),
                operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            }],
        };
        let (test, prod, none) = (
            labels(&[("stage", "test")]),
            labels(&[("stage", "prod")]),
            labels(&[]),
        );
        for (selector, on_test, on_prod, on_none) in [
            (selector(Operator::In, &["test", "qa"]), true, false, false),
            (selector(Operator::NotIn, &["test"]), false, true, true),
            (selector(Operator::Exists, &[]), true, true, false),
            (selector(Operator::DoesNotExist, &[]), false, false, true),
            (Selector::default(), true, true, true),
        ] {
            assert_eq!(selector.matches(&test), on_test, "{selector:?}");
            assert_eq!(selector.matches(&prod), on_prod, "{selector:?}");
            assert_eq!(selector.matches(&none), on_none, "{selector:?}");
        }
    }
}

//! Which nodes an object chooses. Agent and controller ask the same functions, so they cannot disagree.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Node;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Chooses nodes by their labels; everything given must hold. Empty chooses every node.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// Labels that a node must have, with exactly these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "super::schema::match_labels")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions on labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<Requirement>,
}

/// A condition on one label.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0",
    "message": "In and NotIn need values, Exists and DoesNotExist take none",
}]))]
pub struct Requirement {
    /// The label's key.
    #[schemars(schema_with = "super::schema::key")]
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    #[schemars(schema_with = "super::schema::label_operator")]
    pub operator: String,
    /// For `In` and `NotIn`: the values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::label_values")]
    pub values: Vec<String>,
}

/// Conditions that must all hold for a node; of several terms one is enough.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// Conditions on labels.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16))]
    pub match_expressions: Vec<NodeSelectorRequirement>,
}

/// A condition on one label of a node.
#[derive(Clone, Debug, Deserialize, JsonSchema, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{
    "rule": "self.operator in ['Gt', 'Lt'] ? has(self.values) && self.values.size() == 1 && self.values[0].matches('^-?[0-9]{1,18}$') : self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 : !has(self.values) || self.values.size() == 0",
    "message": "In and NotIn need values, Gt and Lt one whole number, Exists and DoesNotExist take none",
}]))]
pub struct NodeSelectorRequirement {
    /// The label's key.
    #[schemars(schema_with = "super::schema::key")]
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    #[schemars(schema_with = "super::schema::term_operator")]
    pub operator: String,
    /// For `In` and `NotIn`: the values. For `Gt` and `Lt`: one whole number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "super::schema::term_values")]
    pub values: Vec<String>,
}

/// A taint of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: String,
}

/// What is known of a node when nodes are chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`.
    pub unschedulable: bool,
}

impl LabelSelector {
    /// Whether a node with these labels is chosen. An operator that is not one chooses nothing.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|r| holds(&r.key, &r.operator, &r.values, labels))
    }
}

impl NodeSelectorTerm {
    /// Whether all conditions hold. A term without any chooses nothing, as in a pod's node affinity.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        !self.match_expressions.is_empty()
            && self
                .match_expressions
                .iter()
                .all(|r| holds(&r.key, &r.operator, &r.values, labels))
    }
}

/// What of a Node decides who chooses it.
impl From<&Node> for NodeFacts {
    fn from(node: &Node) -> Self {
        let spec = node.spec.as_ref();
        let taints = spec.and_then(|spec| spec.taints.as_ref());
        NodeFacts {
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: taints
                .into_iter()
                .flatten()
                .map(|taint| Taint {
                    key: taint.key.clone(),
                    effect: taint.effect.clone(),
                })
                .collect(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
        }
    }
}

impl NodeFacts {
    /// Whether a taint keeps ordinary pods away.
    pub fn repels_pods(&self) -> bool {
        self.unschedulable
            || self
                .taints
                .iter()
                .any(|taint| taint.effect == "NoSchedule" || taint.effect == "NoExecute")
    }
}

/// `NotIn` holds for a node without the label, as everywhere in Kubernetes.
fn holds(key: &str, operator: &str, values: &[String], labels: &BTreeMap<String, String>) -> bool {
    let label = labels.get(key);
    match operator {
        "In" => label.is_some_and(|label| values.contains(label)),
        "NotIn" => !label.is_some_and(|label| values.contains(label)),
        "Exists" => label.is_some(),
        "DoesNotExist" => label.is_none(),
        "Gt" | "Lt" => {
            let number = |text: &String| text.parse::<i64>().ok();
            match (label.and_then(number), values) {
                (Some(label), [bound]) => number(bound).is_some_and(|bound| match operator {
                    "Gt" => label > bound,
                    _ => label < bound,
                }),
                _ => false,
            }
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect()
    }

    fn term(operator: &str, values: &[&str]) -> NodeSelectorTerm {
        NodeSelectorTerm {
            match_expressions: vec![NodeSelectorRequirement {
                key: "pool".to_owned(),
                operator: operator.to_owned(),
                values: values.iter().map(|v| (*v).to_owned()).collect(),
            }],
        }
    }

    #[test]
    fn an_empty_selector_chooses_every_node_and_an_empty_term_none() {
        assert!(LabelSelector::default().matches(&labels(&[])));
        assert!(!NodeSelectorTerm::default().matches(&labels(&[("pool", "gpu")])));
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let gpu = labels(&[("pool", "gpu")]);
        let none = labels(&[]);
        let seven = labels(&[("pool", "7")]);
        for (operator, values, gpu_matches, none_matches, seven_matches) in [
            ("In", &["gpu", "tpu"][..], true, false, false),
            ("NotIn", &["gpu"][..], false, true, true),
            ("Exists", &[][..], true, false, true),
            ("DoesNotExist", &[][..], false, true, false),
            ("Gt", &["6"][..], false, false, true),
            ("Lt", &["7"][..], false, false, false),
            ("Near", &["gpu"][..], false, false, false),
        ] {
            let term = term(operator, values);
            assert_eq!(term.matches(&gpu), gpu_matches, "{operator} gpu");
            assert_eq!(term.matches(&none), none_matches, "{operator} none");
            assert_eq!(term.matches(&seven), seven_matches, "{operator} seven");
        }
    }
}

//! A policy's spec in the planner's words, and the hash of all that decides what goes.

use std::time::Duration;

use super::amount::Amount;
use super::duration::parse_duration;
use super::prune::{ImagePrunePolicySpec, MatchImages, PruneMode, PruneRule};
use super::selector::LabelSelector;
use crate::prune;

/// Rules of one policy; the schema has the same limit.
const MAX_RULES: usize = 16;

/// Why a spec is no policy. Objects that passed the schema never are; files may be anything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {cause}")]
pub struct PolicyFault {
    /// Path below `spec`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub cause: String,
}

impl ImagePrunePolicySpec {
    /// The policy, in the planner's words. A spec with a fault is none as a whole: half a policy might remove what the
    /// other half protects.
    pub fn policy(&self, name: &str) -> Result<prune::Policy, PolicyFault> {
        let fault = |field: &str, cause: &str| PolicyFault {
            field: field.to_owned(),
            cause: cause.to_owned(),
        };
        if self.rules.is_empty() || self.rules.len() > MAX_RULES {
            return Err(fault("rules", "give 1 to 16 rules"));
        }
        let rules = self.rules.iter().enumerate();
        let rules: Result<Vec<prune::Rule>, PolicyFault> = rules
            .map(|(place, spec)| {
                rule(spec).map_err(|(field, cause)| PolicyFault {
                    field: format!("rules[{place}].{field}"),
                    cause,
                })
            })
            .collect();
        let max_removals = match self.max_removals_per_run {
            None => None,
            Some(most) => match u32::try_from(most) {
                Ok(most) if (1..=10_000).contains(&most) => Some(most),
                _ => return Err(fault("maxRemovalsPerRun", "give a number from 1 to 10000")),
            },
        };
        Ok(prune::Policy {
            name: name.to_owned(),
            rules: rules?,
            max_removals,
        })
    }

    /// 16 hexadecimal digits over what decides removals: mode, rules and the limit of a run. Who is chosen, when nodes
    /// look and how a change reaches them make no revision.
    pub fn revision(&self) -> String {
        let deciding = ImagePrunePolicySpec {
            mode: self.mode,
            rules: self.rules.clone(),
            max_removals_per_run: self.max_removals_per_run,
            ..ImagePrunePolicySpec::default()
        };
        // Plain values in a fixed order; to write them as JSON cannot go wrong.
        let text = serde_json::to_vec(&deciding).unwrap_or_default();
        blake3::hash(&text).to_hex().chars().take(16).collect()
    }

    /// Whether nodes remove anything, once they are admitted.
    pub fn enforces(&self) -> bool {
        self.mode == PruneMode::Enforce
    }
}

type Fault = (&'static str, String);

fn rule(spec: &PruneRule) -> Result<prune::Rule, Fault> {
    let given = [
        spec.unused_for.is_some(),
        spec.keep_last.is_some(),
        spec.max_used_bytes.is_some(),
        spec.min_free.is_some(),
        spec.reserved.is_some(),
    ];
    if !given.contains(&true) {
        let cause =
            "a rule needs at least one of unusedFor, keepLast, maxUsedBytes, minFree and reserved";
        return Err(("unusedFor", cause.to_owned()));
    }
    Ok(prune::Rule {
        images: match &spec.images {
            Some(images) => about(images)?,
            None => prune::Match::default(),
        },
        unused_for: spec.unused_for.as_deref().map(unused_for).transpose()?,
        keep_last: match spec.keep_last {
            None => None,
            Some(keep) => match u32::try_from(keep) {
                Ok(keep) if keep <= 1000 => Some(keep),
                _ => return Err(("keepLast", "give a number from 0 to 1000".to_owned())),
            },
        },
        max_used: amount("maxUsedBytes", spec.max_used_bytes.as_ref())?,
        min_free: amount("minFree", spec.min_free.as_ref())?,
        reserved: amount("reserved", spec.reserved.as_ref())?,
    })
}

fn unused_for(text: &str) -> Result<Duration, Fault> {
    let duration = parse_duration(text).map_err(|error| ("unusedFor", error.to_string()))?;
    if duration < Duration::from_secs(60) {
        return Err(("unusedFor", "give 1m at least".to_owned()));
    }
    Ok(duration)
}

fn amount(field: &'static str, amount: Option<&Amount>) -> Result<Option<prune::Amount>, Fault> {
    let Some(amount) = amount else {
        return Ok(None);
    };
    // A share of a hundred is its percentage.
    let parsed = amount.of(100).map_err(|error| (field, error.to_string()))?;
    let share = matches!(amount, Amount::Text(text) if text.ends_with('%'));
    Ok(Some(if share {
        prune::Amount::Percent(u8::try_from(parsed).unwrap_or(100))
    } else {
        prune::Amount::Bytes(parsed)
    }))
}

fn about(spec: &MatchImages) -> Result<prune::Match, Fault> {
    Ok(prune::Match {
        images: spec
            .images
            .iter()
            .map(|text| prune::Pattern::new(text.as_str()))
            .collect(),
        labels: match &spec.labels {
            Some(labels) => selector(labels)?,
            None => prune::Selector::default(),
        },
        namespaces: spec.namespaces.iter().cloned().collect(),
        ..prune::Match::default()
    })
}

fn selector(spec: &LabelSelector) -> Result<prune::Selector, Fault> {
    let exact = spec
        .match_labels
        .iter()
        .map(|(key, value)| prune::Requirement {
            key: key.clone(),
            operator: prune::Operator::In,
            values: vec![value.clone()],
        });
    let mut requirements: Vec<prune::Requirement> = exact.collect();
    for requirement in &spec.match_expressions {
        let operator = match requirement.operator.as_str() {
            "In" => prune::Operator::In,
            "NotIn" => prune::Operator::NotIn,
            "Exists" => prune::Operator::Exists,
            "DoesNotExist" => prune::Operator::DoesNotExist,
            other => {
                let other: String = other.chars().take(32).collect();
                let cause = format!("{other:?} is none of In, NotIn, Exists and DoesNotExist");
                return Err(("match.labels", cause));
            }
        };
        requirements.push(prune::Requirement {
            key: requirement.key.clone(),
            operator,
            values: requirement.values.clone(),
        });
    }
    Ok(prune::Selector { requirements })
}

#[cfg(test)]
mod tests {
    use super::super::prune::ImagePrunePolicy;
    use super::*;

    const CONTRACT: &str = "
apiVersion: larder.dev/v1alpha1
kind: ImagePrunePolicy
metadata: {name: default}
spec:
  mode: Enforce
  nodeSelector: {matchLabels: {pool: ci}}
  rules: [{match: {images: [\"registry.example/ci/*\"]}, unusedFor: 24h, keepLast: 2}, {minFree: 15%}]
";

    fn spec(text: &str) -> ImagePrunePolicySpec {
        serde_saphyr::from_str(text).unwrap()
    }

    #[test]
    fn the_contracts_example_becomes_two_rules() {
        let object: ImagePrunePolicy = serde_saphyr::from_str(CONTRACT).unwrap();
        assert!(object.spec.enforces());
        let policy = object.spec.policy("default").unwrap();
        let [ci, free] = policy.rules.as_slice() else {
            panic!("{policy:?}");
        };
        assert_eq!(ci.images.images.len(), 1);
        assert_eq!(ci.unused_for, Some(Duration::from_secs(86_400)));
        assert_eq!(ci.keep_last, Some(2));
        assert_eq!(free.min_free, Some(prune::Amount::Percent(15)));
        assert!(!ci.follows_disk() && free.follows_disk());
    }

    #[test]
    fn amounts_and_selectors() {
        let policy = spec(
            "rules: [{match: {namespaces: [ci], labels: {matchLabels: {a: b}, matchExpressions: [{key: c, operator: \
             Exists}]}}, maxUsedBytes: 20Gi, reserved: 5000}]",
        )
        .policy("p")
        .unwrap();
        let rule = &policy.rules[0];
        assert_eq!(rule.max_used, Some(prune::Amount::Bytes(20 << 30)));
        assert_eq!(rule.reserved, Some(prune::Amount::Bytes(5000)));
        assert_eq!(rule.images.labels.requirements.len(), 2);
        assert!(rule.images.namespaces.contains("ci"));
    }

    #[test]
    fn faults_name_the_field() {
        for (text, field) in [
            ("rules: []", "rules"),
            ("rules: [{}]", "rules[0].unusedFor"),
            ("rules: [{minFree: 15%}, {minFree: 0%}]", "rules[1].minFree"),
            ("rules: [{maxUsedBytes: lots}]", "rules[0].maxUsedBytes"),
            ("rules: [{unusedFor: 1d}]", "rules[0].unusedFor"),
            ("rules: [{unusedFor: 5s}]", "rules[0].unusedFor"),
            ("rules: [{keepLast: -1}]", "rules[0].keepLast"),
            (
                "rules: [{keepLast: 1}]\nmaxRemovalsPerRun: 0",
                "maxRemovalsPerRun",
            ),
            (
                "rules: [{keepLast: 1, match: {labels: {matchExpressions: [{key: a, operator: Like}]}}}]",
                "rules[0].match.labels",
            ),
        ] {
            assert_eq!(spec(text).policy("p").unwrap_err().field, field, "{text}");
        }
    }

    #[test]
    fn only_what_decides_removals_makes_a_revision() {
        let one = spec("rules: [{minFree: 15%}]");
        let name = one.revision();
        assert_eq!(name.len(), 16);
        for same in [
            "mode: DryRun\nrules: [{minFree: 15%}]",
            "rules: [{minFree: 15%}]\nnodeSelector: {matchLabels: {a: b}}",
            "rules: [{minFree: 15%}]\nrollout: {maxInFlight: 3, paused: true}",
            "rules: [{minFree: 15%}]\nschedule: {interval: 6h}",
        ] {
            assert_eq!(spec(same).revision(), name, "{same}");
        }
        for other in [
            "mode: Enforce\nrules: [{minFree: 15%}]",
            "rules: [{minFree: 16%}]",
            "rules: [{minFree: 15%}, {keepLast: 2}]",
            "rules: [{minFree: 15%}]\nmaxRemovalsPerRun: 5",
        ] {
            assert_ne!(spec(other).revision(), name, "{other}");
        }
    }
}

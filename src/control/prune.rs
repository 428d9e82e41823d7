//! `Prune`: policies from the wire to the planner's words, and what a run did back.

use std::time::Duration;

use tonic::Status;

use super::proto;
use crate::cache::Pruned;
use crate::prune::{
    Amount, Kept, Match, Operator, Pattern, Policy, Removal, Requirement, Rule, Selector,
};

/// Of one request.
const MAX_POLICIES: usize = 1000;
/// Of one policy.
const MAX_RULES: usize = 64;

pub(super) fn policies(request: Vec<proto::PrunePolicy>) -> Result<Vec<Policy>, Status> {
    if request.is_empty() || request.len() > MAX_POLICIES {
        return Err(Status::invalid_argument(format!(
            "give 1 to {MAX_POLICIES} policies"
        )));
    }
    request.into_iter().map(policy).collect()
}

fn policy(policy: proto::PrunePolicy) -> Result<Policy, Status> {
    if policy.rules.len() > MAX_RULES {
        let name = policy.name;
        return Err(Status::invalid_argument(format!(
            "policy {name}: more than {MAX_RULES} rules"
        )));
    }
    let rules: Result<Vec<Rule>, Status> = policy.rules.into_iter().map(rule).collect();
    Ok(Policy {
        name: policy.name,
        rules: rules?,
        max_removals: Some(policy.max_removals).filter(|most| *most > 0),
    })
}

fn rule(rule: proto::PruneRule) -> Result<Rule, Status> {
    let pulled_before = match rule.pulled_before.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|error| {
            Status::invalid_argument(format!("pulled_before {text:?}: {error}"))
        })?),
    };
    let requirements: Result<Vec<Requirement>, Status> =
        rule.labels.into_iter().map(requirement).collect();
    Ok(Rule {
        images: Match {
            images: rule.images.into_iter().map(Pattern::new).collect(),
            labels: Selector {
                requirements: requirements?,
            },
            namespaces: rule.namespaces.into_iter().collect(),
            untagged: rule.untagged,
            pulled_before,
        },
        unused_for: rule.unused_for_seconds.map(Duration::from_secs),
        keep_last: rule.keep_last,
        max_used: rule.max_used.map(amount).transpose()?,
        min_free: rule.min_free.map(amount).transpose()?,
        reserved: None,
    })
}

fn requirement(requirement: proto::PruneRequirement) -> Result<Requirement, Status> {
    let operator = match requirement.operator.as_str() {
        "In" => Operator::In,
        "NotIn" => Operator::NotIn,
        "Exists" => Operator::Exists,
        "DoesNotExist" => Operator::DoesNotExist,
        other => {
            return Err(Status::invalid_argument(format!(
                "{other:?} is no operator: In, NotIn, Exists and DoesNotExist are"
            )));
        }
    };
    Ok(Requirement {
        key: requirement.key,
        operator,
        values: requirement.values,
    })
}

fn amount(amount: proto::PruneAmount) -> Result<Amount, Status> {
    use proto::prune_amount::Amount as Wire;
    match amount.amount {
        Some(Wire::Bytes(bytes)) => Ok(Amount::Bytes(bytes)),
        Some(Wire::Percent(percent)) => match u8::try_from(percent) {
            Ok(percent @ 0..=100) => Ok(Amount::Percent(percent)),
            _ => Err(Status::invalid_argument(format!(
                "{percent}% is more than there is"
            ))),
        },
        None => Err(Status::invalid_argument(
            "an amount says neither bytes nor percent",
        )),
    }
}

/// The wire's words for a policy: for the terminal, which reads policies from files.
pub fn request(policy: &Policy) -> proto::PrunePolicy {
    proto::PrunePolicy {
        name: policy.name.clone(),
        rules: policy.rules.iter().map(wire_rule).collect(),
        max_removals: policy.max_removals.unwrap_or_default(),
    }
}

fn wire_rule(rule: &Rule) -> proto::PruneRule {
    let requirements = rule.images.labels.requirements.iter();
    proto::PruneRule {
        images: rule.images.images.iter().map(ToString::to_string).collect(),
        labels: requirements
            .map(|requirement| proto::PruneRequirement {
                key: requirement.key.clone(),
                operator: match requirement.operator {
                    Operator::In => "In",
                    Operator::NotIn => "NotIn",
                    Operator::Exists => "Exists",
                    Operator::DoesNotExist => "DoesNotExist",
                }
                .to_owned(),
                values: requirement.values.clone(),
            })
            .collect(),
        namespaces: rule.images.namespaces.iter().cloned().collect(),
        untagged: rule.images.untagged,
        pulled_before: rule
            .images
            .pulled_before
            .map(|time| time.to_string())
            .unwrap_or_default(),
        unused_for_seconds: rule.unused_for.map(|unused| unused.as_secs()),
        keep_last: rule.keep_last,
        max_used: rule.max_used.map(wire_amount),
        min_free: rule.min_free.map(wire_amount),
    }
}

fn wire_amount(amount: Amount) -> proto::PruneAmount {
    use proto::prune_amount::Amount as Wire;
    proto::PruneAmount {
        amount: Some(match amount {
            Amount::Bytes(bytes) => Wire::Bytes(bytes),
            Amount::Percent(percent) => Wire::Percent(percent.into()),
        }),
    }
}

pub(super) fn response(pruned: Pruned) -> proto::PruneResponse {
    let failures = pruned.failures.into_iter();
    proto::PruneResponse {
        remove: pruned.plan.remove.into_iter().map(removal).collect(),
        keep: pruned.plan.keep.into_iter().map(kept).collect(),
        free_bytes: pruned.plan.free_bytes,
        short_bytes: pruned.plan.short_bytes,
        failures: failures
            .map(|(id, message)| proto::PruneFailure { id, message })
            .collect(),
    }
}

fn removal(removal: Removal) -> proto::PruneRemoval {
    proto::PruneRemoval {
        id: removal.id,
        names: removal.names,
        policy: removal.policy,
        rule: removal.rule,
        reason: removal.reason,
        bytes: removal.bytes,
    }
}

fn kept(kept: Kept) -> proto::PruneKept {
    proto::PruneKept {
        id: kept.id,
        names: kept.names,
        reason: kept.reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_survives_the_wire() {
        let policy = Policy {
            name: "ci".to_owned(),
            rules: vec![
                Rule {
                    images: Match {
                        images: vec![Pattern::new("r/ci/*")],
                        labels: Selector {
                            requirements: vec![Requirement {
                                key: "stage".to_owned(),
                                operator: Operator::NotIn,
                                values: vec!["prod".to_owned()],
                            }],
                        },
                        namespaces: ["team".to_owned()].into(),
                        untagged: true,
                        pulled_before: Some("2026-11-21T13:00:00Z".parse().unwrap()),
                    },
                    unused_for: Some(Duration::from_secs(86_400)),
                    keep_last: Some(0),
                    ..Rule::default()
                },
                Rule {
                    max_used: Some(Amount::Bytes(5)),
                    min_free: Some(Amount::Percent(15)),
                    ..Rule::default()
                },
            ],
            max_removals: Some(3),
        };
        let sent = vec![request(&policy)];
        assert_eq!(policies(sent).unwrap(), vec![policy]);
    }

    #[test]
    fn what_makes_no_sense_is_the_callers_fault() {
        let with = |rule: proto::PruneRule| {
            let policy = proto::PrunePolicy {
                rules: vec![rule],
                ..proto::PrunePolicy::default()
            };
            policies(vec![policy]).unwrap_err().code()
        };
        let percent = |percent| proto::PruneAmount {
            amount: Some(proto::prune_amount::Amount::Percent(percent)),
        };
        for rule in [
            proto::PruneRule {
                pulled_before: "yesterday".to_owned(),
                ..proto::PruneRule::default()
            },
            proto::PruneRule {
                min_free: Some(percent(101)),
                ..proto::PruneRule::default()
            },
            proto::PruneRule {
                max_used: Some(proto::PruneAmount::default()),
                ..proto::PruneRule::default()
            },
            proto::PruneRule {
                labels: vec![proto::PruneRequirement::default()],
                ..proto::PruneRule::default()
            },
        ] {
            assert_eq!(with(rule), tonic::Code::InvalidArgument);
        }
        assert!(policies(Vec::new()).is_err());
    }
}

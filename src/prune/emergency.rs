//! A disk that is nearly full: what goes at once, policies or not.

use jiff::Timestamp;

use super::amount::Amount;
use super::plan::{Active, Selection, Verdict, in_order};
use super::words::{Candidate, Disk, Plan, Protection, Rule};

/// The rule of a removal that no policy asked for.
pub const EMERGENCY: &str = "emergency";

/// Plans for `target_free` bytes to be free: as few images as do, the longest unused first. What nothing protects goes
/// first; if that is not enough, so do images of the grace period and those that prepulls declare without a pin.
pub fn emergency(images: &[Candidate], disk: &Disk, target_free: u64, now: Timestamp) -> Plan {
    let images = in_order(images);
    let rule = Rule {
        min_free: Some(Amount::Bytes(target_free)),
        ..Rule::default()
    };
    let tier = |may_go: fn(&Candidate) -> bool| Active {
        policy: "",
        quota: 0,
        rule: &rule,
        text: EMERGENCY.to_owned(),
        wants: Some(rule.wants(disk)),
        verdicts: images
            .iter()
            .map(|image| {
                if may_go(image) {
                    Verdict::Eligible
                } else {
                    Verdict::Protected
                }
            })
            .collect(),
    };
    let active = [
        tier(|image| image.protections.is_empty()),
        tier(|image| image.protections.iter().all(breakable)),
    ];
    Selection::new(&images, &active, vec![None]).plan(disk, now)
}

fn breakable(protection: &Protection) -> bool {
    matches!(
        protection,
        Protection::Grace { .. } | Protection::Declared { pinned: false, .. }
    )
}

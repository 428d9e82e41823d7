//! A node's place in the order in which a rollout admits nodes.

/// 53 bits: JSON readers that keep numbers as doubles lose nothing. At 5,000 nodes two share a slot with a
/// probability of 1.4e-9.
pub type Slot = u64;

/// The threshold that admits nobody.
pub const NOBODY: Slot = 0;
/// The threshold that admits everybody, nodes that join later too.
pub const ALL: Slot = (1 << 53) - 1;

/// The slot of a node in one revision of one prepull: between [`NOBODY`] and [`ALL`], both exclusive. A node is
/// admitted when its slot is at most the rollout's threshold. Another revision gives another order, so that the same
/// node is not first each time.
pub fn slot(node_uid: &str, prepull_uid: &str, revision: &str) -> Slot {
    let mut hasher = blake3::Hasher::new();
    for part in [node_uid, prepull_uid, revision] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let hash = hasher.finalize();
    let number = hash
        .as_bytes()
        .iter()
        .take(8)
        .fold(0u64, |number, byte| (number << 8) | u64::from(*byte));
    (number >> 11).clamp(NOBODY + 1, ALL - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depends_on_every_part_and_stays_in_range() {
        let one = slot("node", "prepull", "revision");
        assert_eq!(one, slot("node", "prepull", "revision"));
        assert_ne!(one, slot("node2", "prepull", "revision"));
        assert_ne!(one, slot("node", "prepull2", "revision"));
        assert_ne!(one, slot("node", "prepull", "revision2"));
        assert_ne!(slot("ab", "c", ""), slot("a", "bc", ""));
        assert!(one > NOBODY && one < ALL);
    }

    #[test]
    fn five_thousand_nodes_have_slots_of_their_own() {
        let mut slots: Vec<Slot> = (0..5000)
            .map(|node| slot(&format!("node-{node}"), "prepull", "revision"))
            .collect();
        slots.sort_unstable();
        slots.dedup();
        assert_eq!(slots.len(), 5000);
    }
}

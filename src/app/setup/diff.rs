//! Two texts as `diff -u` shows them. Pure.

use std::path::Path;

/// Equal lines around each change.
const CONTEXT: usize = 3;
/// Cells of the table by which equal lines are found; larger differences are shown as one piece.
const MAX_CELLS: usize = 4 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Keep,
    Drop,
    Add,
}

/// How one text becomes another; `None` is an absent file.
pub(super) fn unified(path: &Path, before: Option<&str>, after: Option<&str>) -> String {
    let name = |text: Option<&str>| match text {
        Some(_) => path.display().to_string(),
        None => "/dev/null".to_owned(),
    };
    let mut out = format!("--- {}\n+++ {}\n", name(before), name(after));
    let lines = |text: Option<&'_ str>| {
        let text = text.unwrap_or_default();
        text.split_inclusive('\n')
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let (before, after) = (lines(before), lines(after));
    let ops = ops(&before, &after);
    for hunk in hunks(&ops) {
        let (mut old, mut new) = (0usize, 0usize);
        for op in ops.get(..hunk.start).unwrap_or_default() {
            old = old.saturating_add(usize::from(*op != Op::Add));
            new = new.saturating_add(usize::from(*op != Op::Drop));
        }
        let ops = ops.get(hunk).unwrap_or_default();
        let count = |without: Op| ops.iter().filter(|op| **op != without).count();
        let range = |start: usize, count: usize| match count {
            0 => format!("{start},0"),
            1 => start.saturating_add(1).to_string(),
            _ => format!("{},{count}", start.saturating_add(1)),
        };
        out.push_str(&format!(
            "@@ -{} +{} @@\n",
            range(old, count(Op::Add)),
            range(new, count(Op::Drop))
        ));
        for op in ops {
            let (mark, line) = match op {
                Op::Keep => (' ', before.get(old)),
                Op::Drop => ('-', before.get(old)),
                Op::Add => ('+', after.get(new)),
            };
            old = old.saturating_add(usize::from(*op != Op::Add));
            new = new.saturating_add(usize::from(*op != Op::Drop));
            let line = line.map_or("", String::as_str);
            out.push(mark);
            out.push_str(line);
            if !line.ends_with('\n') {
                out.push_str("\n\\ No newline at end of file\n");
            }
        }
    }
    out
}

fn ops(before: &[String], after: &[String]) -> Vec<Op> {
    let same = |(a, b): &(&String, &String)| a == b;
    let head = before.iter().zip(after).take_while(same).count();
    let rest = |lines: &[String]| lines.len().saturating_sub(head);
    let most = rest(before).min(rest(after));
    let tail = before.iter().rev().zip(after.iter().rev()).take(most);
    let tail = tail.take_while(same).count();
    let middle = |lines: &[String]| {
        let end = lines.len().saturating_sub(tail);
        lines.get(head..end).unwrap_or_default().to_vec()
    };
    let mut ops = vec![Op::Keep; head];
    ops.extend(middle_ops(&middle(before), &middle(after)));
    ops.extend(vec![Op::Keep; tail]);
    ops
}

/// By the longest common subsequence.
fn middle_ops(before: &[String], after: &[String]) -> Vec<Op> {
    let width = after.len().saturating_add(1);
    let cells = before.len().saturating_add(1).saturating_mul(width);
    if cells > MAX_CELLS {
        let mut ops = vec![Op::Drop; before.len()];
        ops.extend(vec![Op::Add; after.len()]);
        return ops;
    }
    let mut table = vec![0u32; cells];
    let at = |old: usize, new: usize| old.saturating_mul(width).saturating_add(new);
    let cell =
        |table: &[u32], old: usize, new: usize| table.get(at(old, new)).copied().unwrap_or(0);
    for (old, a) in before.iter().enumerate().rev() {
        for (new, b) in after.iter().enumerate().rev() {
            let value = match a == b {
                true => {
                    cell(&table, old.saturating_add(1), new.saturating_add(1)).saturating_add(1)
                }
                false => cell(&table, old.saturating_add(1), new).max(cell(
                    &table,
                    old,
                    new.saturating_add(1),
                )),
            };
            if let Some(cell) = table.get_mut(at(old, new)) {
                *cell = value;
            }
        }
    }
    let mut ops = Vec::new();
    let (mut old, mut new) = (0usize, 0usize);
    while old < before.len() || new < after.len() {
        let (below, right) = (old.saturating_add(1), new.saturating_add(1));
        let op = if old < before.len() && new < after.len() && before.get(old) == after.get(new) {
            Op::Keep
        } else if old < before.len()
            && (new >= after.len() || cell(&table, below, new) >= cell(&table, old, right))
        {
            Op::Drop
        } else {
            Op::Add
        };
        old = if op == Op::Add { old } else { below };
        new = if op == Op::Drop { new } else { right };
        ops.push(op);
    }
    ops
}

/// Changes with what is around them; those that touch are one.
fn hunks(ops: &[Op]) -> Vec<std::ops::Range<usize>> {
    let mut hunks: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in ops.iter().enumerate().filter(|(_, op)| **op != Op::Keep) {
        let start = at.saturating_sub(CONTEXT);
        let end = at.saturating_add(CONTEXT + 1).min(ops.len());
        match hunks.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => hunks.push(start..end),
        }
    }
    hunks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(before: Option<&str>, after: Option<&str>) -> String {
        unified(Path::new("/f"), before, after)
    }

    #[test]
    fn as_diff_has_it() {
        assert_eq!(
            shown(None, Some("a\nb\n")),
            "--- /dev/null\n+++ /f\n@@ -0,0 +1,2 @@\n+a\n+b\n"
        );
        assert_eq!(
            shown(Some("a\n"), None),
            "--- /f\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
        );
        assert_eq!(
            shown(
                Some("1\n2\n3\n4\n5\n6\n7\n8\n9\n"),
                Some("1\n2\n3\n4\nx\n6\n7\n8\n9\n")
            ),
            "--- /f\n+++ /f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+x\n 6\n 7\n 8\n"
        );
        assert_eq!(
            shown(Some("a"), Some("a\nb\n")),
            "--- /f\n+++ /f\n@@ -1 +1,2 @@\n-a\n\\ No newline at end of file\n+a\n+b\n"
        );
    }

    proptest::proptest! {
        #[test]
        fn what_is_kept_and_added_is_the_new_text(before in "[ab\n]{0,30}", after in "[ab\n]{0,30}") {
            let diff = shown(Some(&before), Some(&after));
            let wanted: Vec<String> = after.split_inclusive('\n').map(str::to_owned).collect();
            let old: Vec<String> = before.split_inclusive('\n').map(str::to_owned).collect();
            let ops = ops(&old, &wanted);
            let (mut at, mut made) = (0, Vec::new());
            let mut news = 0;
            for op in ops {
                match op {
                    Op::Keep => { made.push(old[at].clone()); at += 1; news += 1; }
                    Op::Drop => at += 1,
                    Op::Add => { made.push(wanted[news].clone()); news += 1; }
                }
            }
            proptest::prop_assert_eq!(made, wanted);
            proptest::prop_assert_eq!(before == after, !diff.contains("@@"));
        }
    }
}

//! What laying one document over another costs in memory, counted by the allocator: the same on every machine.
#![expect(clippy::unwrap_used, clippy::arithmetic_side_effects, reason = "tests")]

use chiton::agent::merge::overlay;
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// `remote_config.allow.max_merge`.
const MOST: usize = 128 << 10;

/// Short words, each of which is a value of its own.
fn dense(size: usize) -> String {
    let lines = (0..).map(|line| {
        format!("  attributes/{line}: {{ actions: [insert, update], key: k{line} }}\n")
    });
    filled("number: 2\nprocessors:\n", lines, size)
}

/// As people write them.
fn block(size: usize) -> String {
    let lines = (0..).map(|line| {
        format!(
            "  attributes/{line}:\n    actions:\n      - insert\n      - update\n    key: k{line}\n"
        )
    });
    filled("# a comment\nreceivers:\n  otlp:\nprocessors: # many\n", lines, size)
}

fn filled(head: &str, lines: impl Iterator<Item = String>, size: usize) -> String {
    let mut text = head.to_owned();
    for line in lines {
        if text.len() + line.len() > size {
            break;
        }
        text.push_str(&line);
    }
    text
}

fn cost(base: &str, over: &str) -> usize {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    let merged = overlay(base.as_bytes(), over.as_bytes()).unwrap();
    assert!(merged.len() > over.len() / 2);
    HEAP.peak_usage() - before
}

/// The budget is a peak of 5.0 MB, of which the agent at rest has 1.7.
#[test]
fn the_largest_merge_costs_no_more_than_its_share() {
    for (name, over) in [("dense", dense(MOST - 4096)), ("block", block(MOST - 4096))] {
        let cost = cost("number: 1\nexporters: { debug: }\n", &over);
        assert!(cost <= 20 * MOST, "{name}: {cost} bytes, {} times the text", cost / over.len());
    }
}

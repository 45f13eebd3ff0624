//! `scripts/run-node.sh`, its functions by their names, as effects on a disk.

use std::string::String;
use std::vec::Vec;
use std::{format, vec};

use consensus_core::update::install::Op;

use super::disk::Tree;
use super::{link, text};

/// As many as it takes to see that they count.
pub(crate) const STARTS: u32 = 2;

/// What `choose` comes to.
pub(crate) struct Chosen {
    pub(crate) release: String,
    pub(crate) on_probation: bool,
    /// What it writes on the way, and the note of what runs.
    pub(crate) ops: Vec<Op>,
    /// The release that it gave up.
    pub(crate) gives_up: Option<String>,
}

fn put(name: &str, data: String) -> Vec<Op> {
    let next = format!("next/{name}");
    vec![
        Op::MakeFolder { path: "next".into() },
        Op::Write { path: next.clone(), data: data.into_bytes(), mode: 0o644 },
        Op::Sync { path: next.clone() },
        Op::Rename { from: next, to: name.into() },
        Op::Sync { path: ".".into() },
    ]
}

fn point_current(id: &str) -> Vec<Op> {
    vec![
        Op::MakeFolder { path: "next".into() },
        Op::Remove { path: "next/current".into() },
        Op::Link { target: format!("releases/{id}"), path: "next/current".into() },
        Op::Sync { path: "next".into() },
        Op::Rename { from: "next/current".into(), to: "current".into() },
        Op::Sync { path: ".".into() },
    ]
}

pub(crate) fn give_up(tree: &Tree, id: &str, good: &str) -> Vec<Op> {
    let record = text(tree, &format!("releases/{id}/install-record")).unwrap_or_default();
    let mut ops = put("rolled-back", format!("release={id}\nreason=it failed\n{record}"));
    ops.extend(point_current(good));
    ops
}

fn is_startable(tree: &Tree, id: &str) -> bool {
    text(tree, &format!("releases/{id}/bin/consensus-node")).is_some()
}

pub(crate) fn choose(tree: &Tree) -> Chosen {
    let good = link(tree, "last-good").filter(|id| is_startable(tree, id));
    let current = link(tree, "current").filter(|id| is_startable(tree, id)).expect("a current release");
    let running = |id: &str| put("running", format!("{id}\n"));
    let Some(good) = good.filter(|good| *good != current) else {
        let ops = running(&current);
        return Chosen { release: current, on_probation: false, ops, gives_up: None };
    };
    let back = |mut ops: Vec<Op>, gives_up: Option<String>| {
        ops.extend(running(&good));
        Chosen { release: good.clone(), on_probation: false, ops, gives_up }
    };
    let line = text(tree, "rolled-back").and_then(|data| data.lines().next());
    if line == Some(format!("release={current}").as_str()) {
        return back(point_current(&good), None);
    }
    let mut words = text(tree, "starts").unwrap_or_default().split_whitespace();
    let counted = words.next() == Some(&current);
    let count: u32 =
        words.next().filter(|_| counted).map_or(0, |count| count.parse().expect("starts is whole"));
    if count >= STARTS {
        return back(give_up(tree, &current, &good), Some(current));
    }
    let mut ops = put("starts", format!("{current} {}\n", count + 1));
    ops.extend(running(&current));
    Chosen { release: current, on_probation: true, ops, gives_up: None }
}

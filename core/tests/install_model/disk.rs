//! A file system that loses, in a power cut, whatever nothing made durable: each change of a folder on its own, in any
//! combination, and the content of files and links. Only a rename is one change.

// Named one by one, because the fuzz body that shares this file is of a crate without a prelude of std.
use std::collections::{BTreeMap, BTreeSet};
use std::string::{String, ToString as _};
use std::vec::Vec;
use std::{format, vec};

use consensus_core::update::install::Op;

/// What a file or link holds that was not made durable.
pub(crate) const TORN: &str = "\0torn";

/// A file system after all is durable: paths with what is there.
pub(crate) type Tree = BTreeMap<String, Node>;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Node {
    Folder,
    File(String),
    Link(String),
}

type Name = (usize, String);
type Names = BTreeMap<Name, usize>;
type Change = Vec<(Name, Option<usize>)>;

#[derive(Clone, Debug)]
struct Body {
    node: Node,
    durable: bool,
}

fn is_set(bits: u64, at: usize) -> bool {
    bits >> (at % 64) & 1 == 1
}

fn some_of(bodies: &[usize], chosen: u64) -> BTreeSet<usize> {
    bodies.iter().enumerate().filter(|(at, _)| is_set(chosen, *at)).map(|(_, body)| *body).collect()
}

#[derive(Clone, Debug)]
pub(crate) struct Disk {
    bodies: Vec<Body>,
    /// As programs see it.
    seen: Names,
    /// As a power cut leaves it at the least.
    kept: Names,
    /// Changes that a power cut may or may not leave.
    pending: Vec<Change>,
}

impl Disk {
    pub(crate) fn of(tree: &Tree) -> Self {
        let root = Body { node: Node::Folder, durable: true };
        let mut disk = Self { bodies: vec![root], seen: Names::new(), kept: Names::new(), pending: vec![] };
        for (path, node) in tree {
            let name = disk.place(path);
            disk.bodies.push(Body { node: node.clone(), durable: true });
            disk.seen.insert(name, disk.bodies.len() - 1);
        }
        disk.kept = disk.seen.clone();
        disk
    }

    /// As programs see it.
    pub(crate) fn tree(&self) -> Tree {
        self.tree_of(&self.seen, &BTreeSet::new())
    }

    /// Paths of what a power cut could change now.
    pub(crate) fn at_stake(&self) -> BTreeSet<String> {
        let (all, now) = (self.trees_after_a_power_cut(), self.tree());
        let differs = |tree: &Tree| -> Vec<String> {
            let paths = tree.keys().chain(now.keys());
            paths.filter(|path| tree.get(*path) != now.get(*path)).cloned().collect()
        };
        all.iter().flat_map(differs).collect()
    }

    /// All that a power cut can leave.
    pub(crate) fn trees_after_a_power_cut(&self) -> BTreeSet<Tree> {
        let counts = self.folders_that_count();
        let pending = self.pending_in(&counts);
        assert!(pending.len() < 16, "{} changes at once", pending.len());
        let mut trees = BTreeSet::new();
        for chosen in 0..1 << pending.len() {
            let (names, soft) = self.left(&counts, &pending, chosen);
            for lost in 0..1 << soft.len() {
                trees.insert(self.tree_of(&names, &some_of(&soft, lost)));
            }
        }
        trees
    }

    /// One of these: each bit decides about one change, and about the content of one file.
    pub(crate) fn tree_after_a_power_cut(&self, chosen: u64, lost: u64) -> Tree {
        let counts = self.folders_that_count();
        let (names, soft) = self.left(&counts, &self.pending_in(&counts), chosen);
        self.tree_of(&names, &some_of(&soft, lost))
    }

    /// What nobody looks at, whatever is lost, need not be tried both ways.
    fn pending_in(&self, counts: &BTreeSet<usize>) -> Vec<&Change> {
        let of_interest = |change: &&Change| change.iter().any(|((folder, _), _)| counts.contains(folder));
        self.pending.iter().filter(of_interest).collect()
    }

    /// The names that are left if those changes came through, and what of them may have lost its content.
    fn left(&self, counts: &BTreeSet<usize>, pending: &[&Change], chosen: u64) -> (Names, Vec<usize>) {
        let mut names = self.kept.clone();
        for (_, change) in pending.iter().enumerate().filter(|(at, _)| is_set(chosen, *at)) {
            for (name, body) in *change {
                match body {
                    Some(body) => names.insert(name.clone(), *body),
                    None => names.remove(name),
                };
            }
        }
        let is_soft = |((folder, name), body): (&Name, &usize)| {
            let looked_at = counts.contains(folder) && !name.ends_with(".next");
            (looked_at && !self.bodies[*body].durable).then_some(*body)
        };
        let soft = names.iter().filter_map(is_soft).collect();
        (names, soft)
    }

    /// Folders that something looks into, in any combination of what is pending: not those of `.partial` releases.
    fn folders_that_count(&self) -> BTreeSet<usize> {
        let added = self.pending.iter().flatten().filter_map(|(name, body)| body.map(|body| (name, body)));
        let names: Vec<_> = added.chain(self.kept.iter().map(|(name, body)| (name, *body))).collect();
        let mut counts = BTreeSet::from([0]);
        loop {
            let before = counts.len();
            for ((folder, name), body) in &names {
                let is_folder = self.bodies[*body].node == Node::Folder;
                if is_folder && counts.contains(folder) && !name.ends_with(".partial") {
                    counts.insert(*body);
                }
            }
            if counts.len() == before {
                return counts;
            }
        }
    }

    /// What is in a release that is not whole is nobody's: that there is one is all that counts. What is beside its
    /// place is not shown at all: whoever writes there removes or empties what is left of an earlier try.
    fn tree_of(&self, names: &Names, torn: &BTreeSet<usize>) -> Tree {
        let mut tree = Tree::new();
        let mut folders = vec![(0, String::new())];
        while let Some((folder, path)) = folders.pop() {
            for ((_, name), body) in names.range((folder, String::new())..(folder + 1, String::new())) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
                if path.ends_with(".next") || path.starts_with("next/") {
                    continue;
                }
                let node = match &self.bodies[*body].node {
                    Node::Folder => {
                        if !path.ends_with(".partial") {
                            folders.push((*body, path.clone()));
                        }
                        Node::Folder
                    }
                    Node::File(_) if torn.contains(body) => Node::File(TORN.into()),
                    Node::Link(_) if torn.contains(body) => Node::Link(TORN.into()),
                    node => node.clone(),
                };
                tree.insert(path, node);
            }
        }
        tree
    }

    /// Whether an effect is on what nobody looks into, whatever a power cut leaves.
    pub(crate) fn is_nobodys(&self, part: &Op) -> bool {
        let (Op::Write { path, .. } | Op::MakeFolder { path } | Op::Remove { path } | Op::Sync { path }) =
            part
        else {
            return false;
        };
        path.contains(".partial/") && !self.folders_that_count().contains(&self.place(path).0)
    }

    fn place(&self, path: &str) -> Name {
        match path.rsplit_once('/') {
            Some((folder, name)) => (self.find(folder).expect(path), name.into()),
            None => (0, path.into()),
        }
    }

    fn find(&self, path: &str) -> Option<usize> {
        if path == "." {
            return Some(0);
        }
        path.split('/').try_fold(0, |folder, name| self.seen.get(&(folder, name.to_string())).copied())
    }

    fn change(&mut self, change: Change) {
        for (name, body) in &change {
            match body {
                Some(body) => self.seen.insert(name.clone(), *body),
                None => self.seen.remove(name),
            };
        }
        self.pending.push(change);
    }

    fn add(&mut self, path: &str, node: Node) {
        let name = self.place(path);
        assert!(!self.seen.contains_key(&name), "{path} is there already");
        let durable = node == Node::Folder;
        self.bodies.push(Body { node, durable });
        self.change(vec![(name, Some(self.bodies.len() - 1))]);
    }

    fn write(&mut self, path: &str, data: String) {
        match self.find(path) {
            Some(body) => self.bodies[body] = Body { node: Node::File(data), durable: false },
            None => self.add(path, Node::File(data)),
        }
    }

    fn sync(&mut self, path: &str) {
        let at = self.find(path).expect(path);
        self.bodies[at].durable = true;
        if self.bodies[at].node != Node::Folder {
            return;
        }
        for ((folder, _), body) in &self.seen {
            // A link has nothing that could be synced but its name.
            if *folder == at && matches!(self.bodies[*body].node, Node::Link(_)) {
                self.bodies[*body].durable = true;
            }
        }
        for mut change in std::mem::take(&mut self.pending) {
            // A new name may be durable before the old one is gone, not the other way around.
            let all = change.iter().any(|((folder, _), body)| *folder == at && body.is_none());
            change.retain(|(name, body)| {
                let now = all || name.0 == at;
                match body {
                    Some(body) if now => drop(self.kept.insert(name.clone(), *body)),
                    None if now => drop(self.kept.remove(name)),
                    _ => {}
                }
                !now
            });
            if !change.is_empty() {
                self.pending.push(change);
            }
        }
    }

    fn below(&self, folder: usize) -> Vec<(String, usize)> {
        let range = (folder, String::new())..(folder + 1, String::new());
        self.seen.range(range).map(|((_, name), body)| (name.clone(), *body)).collect()
    }

    /// The effects that an effect is made of, each of which may be the last before a power cut.
    pub(crate) fn parts(&self, op: &Op, files: &[(&str, String)]) -> Vec<Op> {
        match op {
            Op::Unpack { into } => files
                .iter()
                .flat_map(|(name, data)| {
                    let path = format!("{into}/{name}");
                    let folder = path.rsplit_once('/').map(|(folder, _)| folder.to_string());
                    let folder = folder.filter(|folder| folder != into).map(|path| Op::MakeFolder { path });
                    let write = Op::Write { path, data: data.clone().into_bytes(), mode: 0o755 };
                    folder.into_iter().chain([write])
                })
                .collect(),
            Op::SyncTree { path } => {
                let mut parts = vec![];
                for (name, body) in self.below(self.find(path).expect(path)) {
                    let path = format!("{path}/{name}");
                    match self.bodies[body].node {
                        Node::Folder => parts.extend(self.parts(&Op::SyncTree { path }, files)),
                        _ => parts.push(Op::Sync { path }),
                    }
                }
                parts.push(Op::Sync { path: path.clone() });
                parts
            }
            Op::RemoveTree { path } => {
                let mut parts = vec![];
                if let Some(folder) = self.find(path) {
                    for (name, body) in self.below(folder) {
                        let path = format!("{path}/{name}");
                        match self.bodies[body].node {
                            Node::Folder => parts.extend(self.parts(&Op::RemoveTree { path }, files)),
                            _ => parts.push(Op::Remove { path }),
                        }
                    }
                    parts.push(Op::Remove { path: path.clone() });
                }
                parts
            }
            other => vec![other.clone()],
        }
    }

    /// Does one part.
    pub(crate) fn perform(&mut self, part: &Op) {
        match part {
            Op::MakeFolder { path } => {
                if self.find(path).is_none() {
                    self.add(path, Node::Folder);
                }
            }
            Op::Write { path, data, .. } => {
                self.write(path, String::from_utf8(data.clone()).expect("a text"));
            }
            Op::Copy { from, to, .. } => {
                let Node::File(data) = self.bodies[self.find(from).expect(from)].node.clone() else {
                    panic!("{from} is no file")
                };
                self.write(to, data);
            }
            Op::Sync { path } => self.sync(path),
            Op::Rename { from, to } => {
                let body = self.find(from).expect(from);
                let (from, name) = (self.place(from), self.place(to));
                if let Some(there) = self.seen.get(&name) {
                    assert!(self.bodies[*there].node != Node::Folder, "{to} is a folder");
                }
                self.change(vec![(name, Some(body)), (from, None)]);
            }
            Op::Link { target, path } => self.add(path, Node::Link(target.clone())),
            Op::Remove { path } => {
                if self.find(path).is_some() {
                    let name = self.place(path);
                    self.change(vec![(name, None)]);
                }
            }
            Op::Unpack { .. } | Op::SyncTree { .. } | Op::RemoveTree { .. } => {
                panic!("{part:?} is more than one effect")
            }
        }
    }
}

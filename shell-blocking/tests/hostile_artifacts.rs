//! Artifacts that are no releases, given to the installer: each is refused with its own reason, and the install
//! directory, and what lies beside it, are afterwards as they were before.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics and says where")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use consensus_core::release::manifest::{Manifest, platform};
use consensus_core::release::version::Version;
use shell_blocking::install::{InstallError, Installed, Request, Settings, inspect, install};

/// A folder of a test's own, with an install directory in it and a file beside that.
struct World {
    root: PathBuf,
}

impl World {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("consensus-hostile-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        fs::create_dir_all(root.join("world/outside")).unwrap();
        fs::write(root.join("world/outside/victim"), "as it was").unwrap();
        Self { root }
    }

    /// With a release that runs.
    fn installed(name: &str) -> Self {
        let world = Self::new(name);
        let installed = world.install(&gzip(&tar(&release("1.0.0"))), "1.0.0", None).unwrap();
        let target = Path::new("releases").join(installed.release.file_name().unwrap());
        symlink(target, world.dir().join("last-good")).unwrap();
        world
    }

    fn dir(&self) -> PathBuf {
        self.root.join("world/runtime")
    }

    fn artifact(&self) -> PathBuf {
        self.root.join("artifact.tgz")
    }

    fn install(
        &self,
        artifact: &[u8],
        version: &str,
        sha256: Option<[u8; 32]>,
    ) -> Result<Installed, InstallError> {
        fs::write(self.artifact(), artifact).unwrap();
        self.install_file(version, sha256)
    }

    fn install_file(&self, version: &str, sha256: Option<[u8; 32]>) -> Result<Installed, InstallError> {
        let settings = Settings {
            install_dir: self.dir(),
            retention: 3,
            probation: Duration::from_secs(180),
            allow_older: false,
        };
        let version: Version = version.parse().unwrap();
        install(
            &settings,
            &Request { artifact: &self.artifact(), version: &version, sha256, update_id: None },
        )
    }

    /// Everything in the world: modes, contents, where links lead.
    fn listing(&self) -> BTreeMap<PathBuf, String> {
        fn list(path: &Path, into: &mut BTreeMap<PathBuf, String>) {
            let metadata = fs::symlink_metadata(path).unwrap();
            let what = if metadata.is_symlink() {
                format!("-> {}", fs::read_link(path).unwrap().display())
            } else if metadata.is_dir() {
                for entry in fs::read_dir(path).unwrap() {
                    list(&entry.unwrap().path(), into);
                }
                "folder".to_string()
            } else {
                format!("{:o} {:?}", metadata.permissions().mode(), fs::read(path).unwrap())
            };
            into.insert(path.to_path_buf(), what);
        }
        let mut listing = BTreeMap::new();
        list(&self.root.join("world"), &mut listing);
        listing
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

/// An entry of an archive, with a header that may say anything.
#[derive(Clone)]
struct Entry {
    header: [u8; 512],
    data: Vec<u8>,
}

impl Entry {
    fn new(path: &[u8], kind: u8, data: &[u8]) -> Self {
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path);
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        Self { header, data: data.to_vec() }.mode(0o755).size(data.len() as u64)
    }

    fn file(path: &str, data: &[u8]) -> Self {
        Self::new(path.as_bytes(), b'0', data)
    }

    fn put(mut self, at: usize, bytes: &[u8]) -> Self {
        self.header[at..at + bytes.len()].copy_from_slice(bytes);
        self.sum()
    }

    fn mode(self, mode: u32) -> Self {
        self.put(100, format!("{mode:07o}\0").as_bytes())
    }

    /// What the header says; the content stays as it is.
    fn size(self, size: u64) -> Self {
        self.put(124, format!("{size:011o}\0").as_bytes())
    }

    fn link(self, to: &str) -> Self {
        self.put(157, to.as_bytes())
    }

    fn sum(mut self) -> Self {
        self.header[148..156].fill(b' ');
        let sum: u32 = self.header.iter().map(|byte| u32::from(*byte)).sum();
        self.header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self
    }
}

fn manifest(version: &str) -> Manifest {
    Manifest::of_this_release(version, "abc", &platform(std::env::consts::OS, std::env::consts::ARCH))
}

fn manifest_entry(manifest: &Manifest) -> Entry {
    Entry::file("release-manifest.json", &serde_json::to_vec(manifest).unwrap()).mode(0o644)
}

fn program() -> Entry {
    Entry::file("bin/consensus-node", b"#!/bin/sh\nexit 0\n")
}

fn release(version: &str) -> Vec<Entry> {
    vec![manifest_entry(&manifest(version)), program(), Entry::file("scripts/run-node.sh", b"#!/bin/sh\n")]
}

/// A good release, and more.
fn and(more: &[Entry]) -> Vec<u8> {
    gzip(&tar(&[release("2.0.0"), more.to_vec()].concat()))
}

/// A release whose manifest says something else.
fn saying(change: impl FnOnce(&mut Manifest)) -> Vec<u8> {
    let mut said = manifest("2.0.0");
    change(&mut said);
    gzip(&tar(&[manifest_entry(&said), program()]))
}

fn entries(entries: &[Entry]) -> Vec<u8> {
    let mut out = Vec::new();
    for entry in entries {
        out.extend(entry.header);
        out.extend(&entry.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out
}

/// With the end mark.
fn tar(of: &[Entry]) -> Vec<u8> {
    [entries(of), vec![0; 1024]].concat()
}

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    out.extend(miniz_oxide::deflate::compress_to_vec(data, 1));
    out.extend(crc32fast::hash(data).to_le_bytes());
    out.extend((data.len() as u32).to_le_bytes());
    out
}

/// The good artifact with a byte changed, counted from its end.
fn changed(from_end: usize) -> Vec<u8> {
    let mut out = and(&[]);
    let at = out.len() - from_end;
    out[at] ^= 0x55;
    out
}

/// Paths and what they lead to.
fn paths() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let file = |path: &[u8]| and(&[Entry::new(path, b'0', b"x")]);
    let kind = |kind: u8| and(&[Entry::new(b"other", kind, b"")]);
    vec![
        ("out of the folder", file(b"../outside/victim"), "has .. in its path"),
        ("out of it by a way in it", file(b"a/../../../outside/victim"), "has .. in its path"),
        ("out of it at the end", and(&[Entry::new(b"bin/..", b'5', b"")]), "has .. in its path"),
        ("an absolute path", file(b"/tmp/consensus-hostile"), "has an absolute path"),
        ("a point in the path", file(b"bin/./x"), "has . in its path"),
        ("an empty name in the path", file(b"bin//x"), "has an empty name"),
        ("no name", file(b""), "has an empty name"),
        ("strokes of another system", file(b"..\\..\\victim"), "not plain ASCII"),
        ("a name with a newline", file(b"bin/a\nb"), "not plain ASCII"),
        ("a name that moves the cursor", file(b"\x1b[2Jx"), "not plain ASCII"),
        ("a name that is not UTF-8", file(b"bin/\xff\xfe"), "not plain ASCII"),
        ("a name in another alphabet", file("bin/\u{441}onsensus-node".as_bytes()), "not plain ASCII"),
        ("a name that goes on after NUL", file(b"bin/consensus-node\0/../../x"), "is there twice"),
        ("a name that begins with a blank", file(b" x"), "blanks at its ends"),
        ("too deep", file(b"a/a/a/a/a/a/a/a/a/a"), "too deep"),
        (
            "too long a path",
            and(&[Entry::new(&[b'a'; 99], b'0', b"")
                .put(345, [b"b/".repeat(60), vec![b'b']].concat().as_slice())]),
            "too long a path",
        ),
        ("the installer's own name", file(b"install-record"), "the installer's"),
        ("a file in a file", file(b"release-manifest.json/x"), "lies in a file"),
        ("a file twice", file(b"scripts/run-node.sh"), "\"scripts/run-node.sh\" is there twice"),
        ("a file twice but for its case", file(b"BIN/consensus-NODE"), "is there twice"),
        ("the manifest twice", and(&[manifest_entry(&manifest("2.0.0"))]), "json\" is there twice"),
        ("a symbolic link", and(&[Entry::new(b"x", b'2', b"").link("../../../outside/victim")]), "is a link"),
        ("a hard link", and(&[Entry::new(b"x", b'1', b"").link("../../../outside/victim")]), "is a link"),
        (
            "a link, and then through it",
            and(&[
                Entry::new(b"x", b'2', b"").link("../../../outside"),
                Entry::file("x/victim", b"overwritten"),
            ]),
            "\"x\" is a link",
        ),
        ("a character device", kind(b'3'), "a device or a pipe"),
        ("a block device", kind(b'4'), "a device or a pipe"),
        ("a pipe", kind(b'6'), "a device or a pipe"),
        ("a contiguous file", kind(b'7'), "neither a file nor a folder"),
        ("a volume's name", kind(b'V'), "neither a file nor a folder"),
        ("a file with holes", kind(b'S'), "a file with holes"),
        (
            "a path set by pax",
            and(&[Entry::new(b"x", b'x', b"19 path=../victim12\n"), Entry::file("y", b"")]),
            "an extension of the format",
        ),
        ("pax for all entries", and(&[Entry::new(b"x", b'g', b"9 size=9\n")]), "an extension of the format"),
        (
            "a huge long name",
            and(&[Entry::new(b"././@LongLink", b'L', b"").size(1 << 32)]),
            "an extension of the format",
        ),
        (
            "a long name of a link",
            and(&[Entry::new(b"x", b'K', b"../victim\0")]),
            "an extension of the format",
        ),
        ("a folder with content", and(&[Entry::new(b"x/", b'5', b"content")]), "a folder with content"),
    ]
}

/// Sizes, counts, frames: what would exhaust, or is cut, or goes on.
fn frames() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let good = and(&[]);
    let plain = tar(&release("2.0.0"));
    let whole = entries(&release("2.0.0"));
    let many: Vec<Entry> = (0..1000).map(|i| Entry::file(&format!("files/{i}"), b"")).collect();
    let huge = |size: u64| and(&[Entry::new(b"x", b'0', b"").size(size)]);
    vec![
        ("nothing", Vec::new(), "not a gzip file"),
        ("text", b"<html>404</html>".repeat(10), "not a gzip file"),
        ("a tar without compression", plain.clone(), "not a gzip file"),
        ("flags that are not known", [&good[..3], &[0xe0], &good[4..]].concat(), "not a gzip file"),
        ("cut in the compressed data", good[..good.len() / 2].to_vec(), "the file is truncated"),
        ("cut in the trailer", good[..good.len() - 1].to_vec(), "the file is truncated"),
        ("another checksum", changed(8), "the checksum of the compressed data is wrong"),
        ("another length", changed(1), "the length of the compressed data is wrong"),
        ("something after it", [&good[..], b"junk"].concat(), "after the end of the compressed data"),
        ("two members", [good.clone(), good.clone()].concat(), "after the end of the compressed data"),
        ("a bomb of padding", gzip(&vec![0; 32 << 20]), "something after the end of the archive"),
        ("a bomb in an entry", and(&[Entry::file("x", &vec![0; 32 << 20])]), "200 times its size"),
        ("an archive that is cut in an entry", gzip(&whole[..whole.len() - 512]), "the archive is truncated"),
        ("an archive that is cut in a header", gzip(&whole[..600]), "the archive is truncated"),
        ("an archive without its end", gzip(&whole), "the archive is truncated"),
        ("half an end", gzip(&[&whole[..], &[0; 512]].concat()), "the archive is truncated"),
        (
            "an archive after the archive",
            gzip(&[plain.clone(), plain].concat()),
            "something after the end of the archive",
        ),
        ("only an end", gzip(&[0; 1024]), "has no release-manifest.json"),
        ("many entries", and(&many), "over 1000 entries"),
        ("one huge entry", huge((256 << 20) + 1), "is too large"),
        ("the largest entry of all", huge(0o777_7777_7777), "is too large"),
        ("a negative size", and(&[Entry::new(b"x", b'0', b"").put(124, &[0xff; 12])]), "cannot be read"),
        (
            "a size in bytes that overflows",
            and(&[Entry::new(b"x", b'0', b"")
                .put(124, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff])]),
            "cannot be read",
        ),
        (
            "a size that is none",
            and(&[Entry::new(b"x", b'0', b"").put(124, b"9z9z9z9z9z9\0")]),
            "cannot be read",
        ),
        (
            "another checksum of a header",
            and(&[{
                let mut entry = Entry::file("x", b"");
                entry.header[0] = b'y';
                entry
            }]),
            "cannot be read",
        ),
    ]
}

/// Archives in good order that are not this release, or none.
fn contents() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let of = |list: &[Entry]| gzip(&tar(list));
    let ours = manifest_entry(&manifest("2.0.0"));
    let odd = |data: &[u8]| of(&[Entry::file("release-manifest.json", data), program()]);
    vec![
        ("no manifest", of(&[program()]), "has no release-manifest.json"),
        (
            "a manifest elsewhere",
            of(&[Entry::file("etc/release-manifest.json", b"{}"), program()]),
            "has no release-m",
        ),
        ("a manifest that is no JSON", odd(b"\xff\xfe"), "its release-manifest.json: "),
        ("a manifest that is nested deep", odd(&b"[".repeat(60_000)), "its release-manifest.json: "),
        ("a manifest without members", odd(b"{}"), "its release-manifest.json: "),
        ("a huge manifest", odd(&[b' '; 65_537]), "over 65536 bytes"),
        (
            "a folder as the manifest",
            of(&[Entry::new(b"release-manifest.json", b'5', b""), program()]),
            "\"release-manifest.json\" is a folder",
        ),
        ("no program", of(std::slice::from_ref(&ours)), "has no bin/consensus-node"),
        (
            "a folder as the program",
            of(&[ours.clone(), Entry::new(b"bin/consensus-node/", b'5', b"")]),
            "is a folder",
        ),
        (
            "a program that is empty",
            of(&[ours.clone(), Entry::file("bin/consensus-node", b"")]),
            "not executable",
        ),
        ("a program that may not be run", of(&[ours, program().mode(0o644)]), "not executable"),
        ("another version", saying(|said| said.version = "2.0.1".into()), "has the version \"2.0.1\""),
        ("a version that is none", saying(|said| said.version = "../../x".into()), "version \"../../x\""),
        (
            "another platform",
            saying(|said| said.platform = "plan9-mips".into()),
            "has the platform \"plan9-mips\"",
        ),
        ("another product", saying(|said| said.product = "other".into()), "has the product \"other\""),
        (
            "another kind",
            saying(|said| said.artifact = "npm-tarball".into()),
            "has the artifact \"npm-tarball\"",
        ),
        (
            "another implementation",
            saying(|said| said.implementation = Some("bun".into())),
            "has the implementation \"bun\"",
        ),
    ]
}

#[test]
fn every_hostile_artifact_is_refused_for_its_own_reason_and_leaves_nothing() {
    let world = World::installed("table");
    let before = world.listing();
    let mut wrong = Vec::new();
    for (what, artifact, reason) in [paths(), frames(), contents()].concat() {
        match world.install(&artifact, "2.0.0", None) {
            Err(InstallError::Artifact(path, why)) => {
                let said = why.to_string();
                if !said.contains(reason) || path != world.artifact() || said.chars().any(char::is_control) {
                    wrong.push(format!("{what}: {said:?}, not {reason:?}"));
                }
            }
            other => wrong.push(format!("{what}: {other:?}")),
        }
        if world.listing() != before {
            wrong.push(format!("{what}: something was left"));
        }
        // Looked through alone, it is found out for the same.
        let looked = inspect(&world.artifact());
        if what != "another version" && !matches!(&looked, Err(error) if error.to_string().contains(reason)) {
            wrong.push(format!("{what}, looked through: {looked:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // What all of these were made of is a release.
    world.install(&and(&[]), "2.0.0", None).unwrap();
}

#[test]
fn an_artifact_of_another_hash_is_refused_before_anything_is_made() {
    let world = World::new("hash");
    let before = world.listing();
    let error = world.install(&and(&[]), "2.0.0", Some([7; 32])).unwrap_err();
    assert!(error.to_string().contains(&format!("not {}", "07".repeat(32))), "{error}");
    assert_eq!(world.listing(), before);
}

#[test]
fn what_is_no_ordinary_file_is_not_read() {
    let world = World::installed("file");
    let before = world.listing();
    let mut reasons = Vec::new();
    let mut refuse = || reasons.push(world.install_file("2.0.0", None).unwrap_err().to_string());
    fs::remove_file(world.artifact()).unwrap();
    refuse();
    fs::create_dir(world.artifact()).unwrap();
    refuse();
    fs::remove_dir(world.artifact()).unwrap();
    symlink("/dev/zero", world.artifact()).unwrap();
    refuse();
    fs::remove_file(world.artifact()).unwrap();
    fs::File::create(world.artifact()).unwrap().set_len((256 << 20) + 1).unwrap();
    refuse();
    let expected = ["No such file", "not an ordinary file", "not an ordinary file", "over 268435456 bytes"];
    for (said, part) in reasons.iter().zip(expected) {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(world.listing(), before);
}

#[test]
fn modes_of_the_archive_do_not_survive() {
    let world = World::installed("modes");
    let entries = [
        manifest_entry(&manifest("2.0.0")).mode(0o666),
        program().mode(0o7777),
        Entry::new(b"scripts/", b'5', b"").mode(0o1777),
        Entry::file("scripts/x", b"x").mode(0o2644),
    ];
    let installed = world.install(&gzip(&tar(&entries)), "2.0.0", None).unwrap();
    let mode = |name: &str| fs::metadata(installed.release.join(name)).unwrap().permissions().mode() & 0o7777;
    let modes = ["release-manifest.json", "bin/consensus-node", "scripts", "scripts/x"].map(mode);
    assert_eq!(modes, [0o644, 0o755, 0o755, 0o644]);
}

#[test]
fn an_installation_that_cannot_become_current_leaves_no_release_behind() {
    let world = World::new("in-the-way");
    // It cannot be replaced by a link.
    fs::create_dir_all(world.dir().join("current")).unwrap();
    for _ in 0..2 {
        let error = world.install(&gzip(&tar(&release("1.0.0"))), "1.0.0", None).unwrap_err();
        assert!(error.to_string().contains("current: cannot be put in place"), "{error}");
        assert_eq!(fs::read_dir(world.dir().join("releases")).unwrap().count(), 0, "{:?}", world.listing());
    }
    fs::remove_dir(world.dir().join("current")).unwrap();
    let installed = world.install(&gzip(&tar(&release("1.0.0"))), "1.0.0", None).unwrap();
    assert!(world.dir().join("current/bin/consensus-node").exists() && installed.release.is_dir());
}

//! Releases made on the spot, for nodes to be updated to.

use std::io;

use consensus_core::release::manifest::{Manifest, platform};

/// The manifest of a release of another version for this machine, as it is inside the archive.
#[must_use]
pub fn manifest(version: &str) -> Manifest {
    let platform = platform(std::env::consts::OS, std::env::consts::ARCH);
    Manifest::of_this_release(version, "0123456789abcdef", &platform)
}

/// The tarball of a release: the manifest, and `program` as `bin/consensus-node`.
///
/// # Errors
/// A file that does not fit in an archive.
pub fn tarball(manifest: &Manifest, program: &[u8]) -> io::Result<Vec<u8>> {
    let text = serde_json::to_vec_pretty(manifest)?;
    pack(&[("release-manifest.json", 0o644, &text), ("bin/consensus-node", 0o755, program)])
}

/// Any gzipped archive of these files: path, mode, content.
///
/// # Errors
/// A file that does not fit in an archive.
pub fn pack(files: &[(&str, u32, &[u8])]) -> io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        archive.append_data(&mut header, path, *content)?;
    }
    let tar = archive.into_inner()?;
    // RFC 1952: no name, no time; the trailer has the sum and the length of what is inside.
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    gzip.extend(miniz_oxide::deflate::compress_to_vec(&tar, 1));
    gzip.extend(crc32fast::hash(&tar).to_le_bytes());
    gzip.extend((tar.len() as u32).to_le_bytes());
    Ok(gzip)
}

//! A network for one test alone, where every address there is belongs to this machine and nothing leaves it; and a
//! small disk for one program.
//!
//! The program is run again in namespaces of its own. For a test the whole address space is
//! routed to the loopback device, so that a listener at `[::]` gets every connection to any address, public or
//! private, and names are resolved by whoever listens at UDP port 53 of 127.0.0.1.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::process::Home;

/// Where the names of such a network are resolved.
pub const RESOLVER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 53);

/// Set for the program that runs inside such a network.
const INSIDE: &str = "CONSENSUS_TESTBED_NAMESPACE";

/// Set for the program that has such a disk.
const ON_DISK: &str = "CONSENSUS_TESTBED_DISK";

/// What makes the network, with the folder of its files as the first argument and then the program to run. A local
/// route takes what is sent to an address in, as if it were the machine's own.
const SETUP: &str = r#"
set -e
files=$1
shift
ip link set lo up
ip route add local 0.0.0.0/0 dev lo
ip -6 route add local ::/0 dev lo
for name in resolv.conf hosts nsswitch.conf; do
    if [ -e "/etc/$name" ]; then mount --bind "$files/$name" "/etc/$name"; fi
done
# A cache of names that runs outside would answer through its socket.
if [ -d /run/nscd ]; then mount -t tmpfs none /run/nscd; fi
exec "$@"
"#;

/// Files that the C library resolves names by: the stub alone, and a few names that no resolver is asked for.
const FILES: [(&str, &str); 3] = [
    ("resolv.conf", "nameserver 127.0.0.1\noptions timeout:5 attempts:1\n"),
    ("hosts", "127.0.0.1 localhost\n::1 localhost ip6-localhost\n10.9.8.7 intranet\n"),
    ("nsswitch.conf", "hosts: files dns\n"),
];

/// Runs `body` in a network of its own. `test` is the whole name of the test that calls this: it is run again, alone,
/// in there. Where the system does not allow that, this says so, loudly, and all is well.
///
/// # Errors
/// The test failed in there; the error has all it said.
pub fn run(test: &str, body: impl FnOnce()) -> io::Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        body();
        return Ok(());
    }
    let home = Home::new()?;
    for (name, text) in FILES {
        fs::write(home.root().join(name), text)?;
    }
    if let Err(why) = try_out(home.root()) {
        // Not `eprintln!`: the harness keeps that to itself.
        return writeln!(
            io::stderr(),
            "\nskipped: {test}: no network of its own: {}",
            why.to_string().trim()
        );
    }
    let program = std::env::current_exe()?;
    let mut command = inside(home.root(), program.as_os_str());
    command.args([test, "--exact", "--nocapture"]).env(INSIDE, "1");
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    // A name that is none runs no test, and that is no success.
    if output.status.success() && said.contains("test result: ok. 1 passed") {
        return Ok(());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::other(format!("{test}, {}:\n{said}\n{errors}", output.status)))
}

/// Whether there can be such a network here.
fn try_out(files: &Path) -> io::Result<()> {
    let output = inside(files, OsStr::new("true")).stdin(Stdio::null()).output()?;
    if output.status.success() {
        Ok(())
    } else {
        Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
    }
}

fn inside(files: &Path, program: &OsStr) -> Command {
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--mount", "--", "sh", "-c", SETUP, "sh"]);
    command.arg(files).arg(program);
    command
}

/// Where this program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Inside {
    /// In a mount namespace whose folder of temporary files is a small disk.
    Here,
    /// Outside: it was run again inside, with the same arguments, to its end. Whether that went well.
    Done(bool),
}

/// Mounts the disk of the size and at the folder that the first two arguments name, and runs the others.
const DISK: &str = r#"
set -e
mount -t tmpfs -o "size=$1" none "$2"
shift 2
exec "$@"
"#;

/// Sees to it that this program runs where temporary files are on a disk of so many bytes.
///
/// # Errors
/// The system does not allow a namespace.
pub fn on_small_disk(bytes: u64) -> io::Result<Inside> {
    if std::env::var_os(ON_DISK).is_some() {
        return Ok(Inside::Here);
    }
    let home = Home::new()?;
    let disk = |program: &OsStr| {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "--", "sh", "-c", DISK, "sh"]);
        command.arg(bytes.to_string()).arg(home.root()).arg(program);
        command
    };
    let output = disk(OsStr::new("true")).stdin(Stdio::null()).output()?;
    if !output.status.success() {
        return Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    let mut command = disk(std::env::current_exe()?.as_os_str());
    command.args(std::env::args_os().skip(1)).env(ON_DISK, "1").env("TMPDIR", home.root());
    Ok(Inside::Done(command.status()?.success()))
}

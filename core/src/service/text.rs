//! Texts for supervisors, each escaped for where it goes.

use alloc::format;
use alloc::string::{String, ToString as _};
use alloc::vec;
use alloc::vec::Vec;

use super::{Order, Scope, Supervisor};

const MACHINE_UNIT: &str = include_str!("../../../scripts/systemd/consensus-node.service");
const USER_UNIT: &str = include_str!("../../../scripts/systemd/consensus-node-user.service");
const PROPERTY_LIST: &str = include_str!("../../../scripts/launchd/network.consensus.node.plist");

/// What begins a file that was made.
const HEADER: &str =
    "# Written by `consensus-node service install`; `consensus-node service uninstall` takes it away.\n\n";

/// Folders that `ProtectHome=yes` hides.
const HOMES: [&str; 3] = ["/home/", "/root/", "/run/user/"];

/// The unit of systemd.
pub(super) fn unit(order: &Order) -> String {
    let mut command = format!("/bin/sh {} run", quoted(&format!("{}/run-node.sh", order.install_dir), true));
    for argument in &order.arguments {
        command.push(' ');
        command.push_str(&quoted(argument, true));
    }
    let variable = |(name, value): (&str, &str)| quoted(&format!("{name}={value}"), false);
    // The whole of the line is the path, and no quotes count; but it is a pattern, as glob(7) has it.
    let settings_file = escaped(&order.settings_file(), &['*', '?', '[', '\\']);
    let settings_file = format!("-{}", settings_file.replace('%', "%%"));
    let mut replaced = vec![
        ("Environment", order.places().map(variable).to_vec()),
        ("EnvironmentFile", vec![settings_file]),
        ("ExecStart", vec![command]),
    ];
    if order.service.scope == Scope::User {
        return with(USER_UNIT, &replaced);
    }
    let mut folders: Vec<&str> = order.places().map(|(_, path)| path).to_vec();
    folders.sort_unstable();
    folders.dedup();
    let writable: Vec<String> = folders.iter().map(|path| quoted(path, false)).collect();
    let is_in_a_home = folders.iter().any(|path| HOMES.iter().any(|home| path.starts_with(home)));
    // What is hidden cannot be written either; what is read-only can be where it is said.
    let home = if is_in_a_home { "read-only" } else { "yes" };
    replaced.push(("User", vec![order.user.0.clone()]));
    replaced.push(("ReadWritePaths", vec![writable.join(" ")]));
    replaced.push(("ProtectHome", vec![home.to_string()]));
    // The folders are there.
    replaced.push(("StateDirectory", vec![]));
    replaced.push(("StateDirectoryMode", vec![]));
    with(MACHINE_UNIT, &replaced)
}

/// A unit with other values for some of its keys, each in the place of the first line with that key.
fn with(template: &str, replaced: &[(&str, Vec<String>)]) -> String {
    let mut out = HEADER.to_string();
    let mut seen = Vec::new();
    for line in template.lines().skip_while(|line| !line.starts_with('[')) {
        let key = line.split_once('=').map(|(key, _)| key);
        let Some((key, values)) = replaced.iter().find(|(name, _)| Some(*name) == key) else {
            out.push_str(line);
            out.push('\n');
            continue;
        };
        if !seen.contains(key) {
            seen.push(*key);
            for value in values {
                out.push_str(&format!("{key}={value}\n"));
            }
        }
    }
    out
}

/// The property list of launchd.
pub(super) fn property_list(order: &Order) -> String {
    let log_file = format!("{}/node.log", order.install_dir);
    let settings_file = order.settings_file();
    let [(_, install_dir), (_, state_dir), (_, registry_dir)] = order.places();
    let values = [
        ("@INSTALL_DIR@", install_dir),
        ("@STATE_DIR@", state_dir),
        ("@REGISTRY_DIR@", registry_dir),
        ("@ENV_FILE@", &settings_file),
        ("@LOG_FILE@", &log_file),
    ];
    let mut out = String::new();
    let mut in_comment = false;
    for line in PROPERTY_LIST.lines() {
        in_comment |= line.starts_with("<!--");
        if !in_comment {
            // Each line has one, so that what is put in is not looked at again.
            let filled = values.iter().find(|(mark, _)| line.contains(mark));
            let line = filled.map_or_else(|| line.to_string(), |(mark, text)| line.replace(mark, &xml(text)));
            out.push_str(&line);
            out.push('\n');
        }
        in_comment &= !line.ends_with("-->");
        if line == "        <string>run</string>" {
            for argument in &order.arguments {
                out.push_str(&format!("        <string>{}</string>\n", xml(argument)));
            }
        }
        if line == "<dict>" && order.service.scope == Scope::Machine {
            out.push_str(&format!("    <key>UserName</key>\n    <string>{}</string>\n", xml(&order.user.0)));
        }
    }
    out
}

/// Settings as lines that systemd and a shell read alike: in double quotes, both take a backslash from before these four
/// characters and leave the rest as it is.
pub(super) fn settings(settings: &[(String, String)]) -> String {
    let mut out = String::from(
        "# Settings of the node, one NAME=\"value\" a line, written by `consensus-node service install`. They count from \
         the next start on.\n",
    );
    for (name, value) in settings {
        out.push_str(&format!("{name}=\"{}\"\n", escaped(value, &['"', '\\', '$', '`'])));
    }
    out
}

fn escaped(text: &str, special: &[char]) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if special.contains(&c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A word of a unit. A percent sign would begin a specifier, and in a command a dollar sign a variable.
fn quoted(text: &str, in_command: bool) -> String {
    let text = escaped(text, &['"', '\\']).replace('%', "%%");
    if in_command { format!("\"{}\"", text.replace('$', "$$")) } else { format!("\"{text}\"") }
}

fn unquoted(text: &str) -> Option<String> {
    let inside = text.strip_prefix('"')?.strip_suffix('"')?.replace("%%", "%");
    let mut out = String::new();
    let mut chars = inside.chars();
    while let Some(c) = chars.next() {
        out.push(if c == '\\' { chars.next()? } else { c });
    }
    Some(out)
}

fn xml(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

fn of_xml(text: &str) -> String {
    text.replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
}

/// A word as a person would type it into a shell.
pub(super) fn shell_word(text: &str) -> String {
    let is_safe =
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=@,+".contains(&b));
    if is_safe { text.to_string() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The install directory that a unit or a property list of ours says; `None` where it says none.
#[must_use]
pub fn install_dir_of(supervisor: Supervisor, text: &str) -> Option<String> {
    const VARIABLE: &str = "CONSENSUS_NODE_INSTALL_DIR";
    let mut lines = text.lines();
    match supervisor {
        Supervisor::Systemd => lines
            .filter_map(|line| unquoted(line.strip_prefix("Environment=")?))
            .find_map(|word| Some(word.strip_prefix(VARIABLE)?.strip_prefix('=')?.to_string())),
        Supervisor::Launchd => {
            lines.find(|line| line.trim() == format!("<key>{VARIABLE}</key>"))?;
            let value = lines.next()?.trim().strip_prefix("<string>")?.strip_suffix("</string>")?;
            Some(of_xml(value))
        }
        Supervisor::Pm2 => None,
    }
}

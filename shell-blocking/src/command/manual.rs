//! The man page and the completions of bash, zsh and fish. All are made of what argh knows of the options, as `--help`
//! is, so that there is no second list to keep.

mod bash;
mod fish;
mod roff;
mod zsh;

use argh::{CommandInfoWithArgs, FlagInfo, FlagInfoKind};

pub(super) use self::roff::page;

/// A shell whose completions can be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shell {
    Bash,
    Zsh,
    Fish,
}

impl std::str::FromStr for Shell {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "bash" => Ok(Self::Bash),
            "zsh" => Ok(Self::Zsh),
            "fish" => Ok(Self::Fish),
            _ => Err(()),
        }
    }
}

/// The completions of `program` for a shell.
pub(super) fn completions(program: &str, all: &CommandInfoWithArgs, shell: Shell) -> String {
    match shell {
        Shell::Bash => bash::script(program, all),
        Shell::Zsh => zsh::script(program, all),
        Shell::Fish => fish::script(program, all),
    }
}

/// A command with the words that lead to it, itself last.
struct Leaf<'a> {
    path: Vec<&'a str>,
    command: &'a CommandInfoWithArgs,
}

/// All subcommands and theirs.
fn leaves<'a>(all: &'a CommandInfoWithArgs) -> Vec<Leaf<'a>> {
    let mut leaves = Vec::new();
    for sub in &all.commands {
        leaves.push(Leaf { path: vec![sub.name], command: &sub.command });
        for below in &sub.command.commands {
            leaves.push(Leaf { path: vec![sub.name, below.name], command: &below.command });
        }
    }
    leaves
}

/// The options of a command but for `--help`, which all have.
fn options(command: &CommandInfoWithArgs) -> impl Iterator<Item = &FlagInfo<'static>> {
    command.flags.iter().filter(|flag| !flag.hidden && flag.long != "--help")
}

/// What can stand after an option, or in a place of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Follows {
    /// Nothing: it is a switch.
    Nothing,
    /// Something that no shell can know.
    Own,
    File,
    Folder,
    /// One of these words.
    Words(&'static str),
}

/// What follows an option, by the name of its argument.
fn follows(flag: &FlagInfo<'_>) -> Follows {
    match flag.kind {
        FlagInfoKind::Switch => Follows::Nothing,
        FlagInfoKind::Option { arg_name } => match arg_name {
            "FILE" => Follows::File,
            "DIR" => Follows::Folder,
            "FORMAT" => Follows::Words("json text"),
            "LEVEL" => Follows::Words("debug info warn error"),
            "BOOL" => Follows::Words("true false"),
            "ANSWER" => Follows::Words("yes no"),
            "NAME" => Follows::Words("systemd launchd pm2"),
            _ => Follows::Own,
        },
    }
}

/// What stands in the place of a command's argument, by its name.
fn place(command: &CommandInfoWithArgs) -> Follows {
    match command.positionals.first().map(|positional| positional.name) {
        None => Follows::Nothing,
        Some("artifact") => Follows::File,
        Some("shell") => Follows::Words("bash zsh fish"),
        Some("what") => Follows::Words("major minor patch prerelease"),
        Some(_) => Follows::Own,
    }
}

/// The first sentence of a description, or of an option's help what is before its variable, in one line.
fn brief(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let end = [". ", ": ", "; ", " ("].iter().filter_map(|stop| line.find(stop)).min().unwrap_or(line.len());
    line[..end].trim_end_matches('.').to_string()
}

/// A name that a function of a shell can have.
fn function(program: &str) -> String {
    format!("_{}", program.replace('-', "_"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::options;

    #[test]
    fn every_command_and_option_is_in_all_of_them() {
        let all = options::info();
        let scripts =
            [Shell::Bash, Shell::Zsh, Shell::Fish].map(|shell| completions("the-node", &all, shell));
        let page = page("the-node", &all);
        let leaves = leaves(&all);
        assert!(leaves.len() > 14, "{}", leaves.len());
        for leaf in leaves {
            for script in &scripts {
                assert!(script.contains(leaf.path.last().unwrap()), "{:?}", leaf.path);
            }
            for flag in options(leaf.command) {
                let name = flag.long.trim_start_matches('-');
                for script in &scripts {
                    assert!(script.contains(name), "{name}");
                }
                assert!(page.contains(&flag.long.replace('-', "\\-")), "{name}");
            }
        }
        for text in scripts.iter().chain([&page]) {
            assert!(text.contains("the-node") || text.contains("the\\-node"));
            assert!(!text.contains("{command_name}") && !text.contains('\u{a0}'), "{text}");
        }
    }

    #[test]
    fn what_is_told_beside_a_completion_is_short() {
        for (whole, short) in [
            ("between pings, 1 to 20 (CONSENSUS_PING_SECONDS; default 20)", "between pings, 1 to 20"),
            ("Serve the local API alone. Works without a registration.", "Serve the local API alone"),
            ("let strangers in: for a lab only", "let strangers in"),
            ("print one JSON object", "print one JSON object"),
        ] {
            assert_eq!(brief(whole), short);
        }
    }
}

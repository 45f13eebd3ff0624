//! The man page, in the `man` macros of roff.

use argh::{CommandInfoWithArgs, FlagInfoKind};

use super::{leaves, options};
use crate::settings::KNOWN;

/// Text in which nothing is an order to roff.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.split_whitespace().collect::<Vec<_>>().join(" ").chars() {
        match c {
            '\\' => out.push_str("\\(rs"),
            '-' => out.push_str("\\-"),
            '`' => out.push_str("\\(ga"),
            '\'' => out.push_str("\\(aq"),
            '~' => out.push_str("\\(ti"),
            '^' => out.push_str("\\(ha"),
            c if c.is_ascii() => out.push(c),
            c => out.push_str(&format!("\\[u{:04X}]", u32::from(c))),
        }
    }
    // A line that begins with a point is an order.
    if out.starts_with('.') { format!("\\&{out}") } else { out }
}

fn option(out: &mut String, name: &str, argument: Option<&str>, about: &str) {
    let argument = argument.map_or_else(String::new, |name| format!(" \\fI{}\\fR", plain(name)));
    out.push_str(&format!(".TP\n\\fB{}\\fR{argument}\n{}\n", plain(name), plain(about)));
}

/// The page of `program`, section 1.
pub(in crate::command) fn page(program: &str, all: &CommandInfoWithArgs) -> String {
    let name = plain(program);
    let about = all.description.lines().next().unwrap_or_default().trim_end_matches('.');
    let mut out = format!(
        ".TH {} 1 \"\" \"{name} {}\" \"User Commands\"\n\
         .nh\n.ad l\n\
         .SH NAME\n{name} \\- {}\n\
         .SH SYNOPSIS\n.B {name}\n\\fISUBCOMMAND\\fR [\\fIOPTION\\fR]...\n\
         .SH DESCRIPTION\n",
        plain(&program.to_uppercase()),
        plain(env!("CARGO_PKG_VERSION")),
        plain(about),
    );
    for line in all.description.lines().skip(1).filter(|line| !line.trim().is_empty()) {
        out.push_str(&format!("{}\n.PP\n", plain(line)));
    }
    out.push_str(
        "An option is given as \\fB\\-\\-name\\fR \\fIvalue\\fR or \\fB\\-\\-name=\\fR\\fIvalue\\fR.\n",
    );
    out.push_str(".SH SUBCOMMANDS\n");
    for leaf in leaves(all) {
        let command = leaf.command;
        out.push_str(&format!(".SS {}", plain(&leaf.path.join(" "))));
        for positional in command.positionals {
            out.push_str(&format!(" {}", plain(&positional.name.to_uppercase())));
        }
        out.push_str(&format!("\n{}\n", plain(command.description)));
        for positional in command.positionals {
            option(&mut out, &positional.name.to_uppercase(), None, positional.description);
        }
        for flag in options(command) {
            let argument = match flag.kind {
                FlagInfoKind::Switch => None,
                FlagInfoKind::Option { arg_name } => Some(arg_name),
            };
            option(&mut out, flag.long, argument, flag.description);
        }
        for example in command.examples {
            let words = format!("{program} {}", leaf.path.join(" "));
            let example = example.replace("{command_name}", &words);
            out.push_str(".PP\nExample:\n.PP\n.nf\n.RS\n");
            for line in example.lines() {
                out.push_str(&format!("{}\n", plain(&line.replace('\u{a0}', " "))));
            }
            out.push_str(".RE\n.fi\n");
        }
    }
    out.push_str(
        ".SH SETTINGS\nAn option goes before its environment variable, that before the settings file, and that before \
         the default. The file is \\fIconfig.toml\\fR in the state directory; its names are these.\n",
    );
    for known in KNOWN {
        let mut said = vec![format!("default: {}", known.default)];
        if !known.env.is_empty() {
            said.insert(0, format!("environment: {}", known.env.join(", ")));
        }
        if !known.in_file {
            said.push("not in the file".to_string());
        }
        option(&mut out, known.name(), None, &said.join("; "));
    }
    out.push_str(".SH EXIT STATUS\n");
    for code in all.error_codes {
        option(&mut out, &code.code.to_string(), None, code.description);
    }
    out.push_str(
        ".SH FILES\n.TP\n\\fI\\(ti/.consensus/node\\fR\nThe state directory: identity, registration, settings.\n\
         .TP\n\\fI\\(ti/.consensus/node/config.toml\\fR\nThe settings file.\n",
    );
    out
}

//! The rule on commands: none uses another one. What two of them need stands beside the commands,
//! or in the crate `run`, so that it can be found by what it is.

use super::files::Repository;

/// Where the commands are: a file each, or a file and a folder.
const COMMANDS: &str = "crates/cli/src/commands/";

/// Finds commands that name another command.
pub fn commands_stand_alone(repository: &Repository) -> Vec<String> {
    let mut faults = Vec::new();
    for file in &repository.files {
        let Some(inside) = file.path.strip_prefix(COMMANDS) else {
            continue;
        };
        let command = inside.split(['/', '.']).next().unwrap_or_default();
        // In a command's own file `super` is the list of commands, in its folder the command.
        let list = match inside.matches('/').count() {
            0 => "super::",
            _ => "super::super::",
        };
        for (number, line) in file.text.lines().enumerate() {
            // Modules of tests begin one level lower.
            if line.starts_with("mod tests") {
                break;
            }
            let code = line.split("//").next().unwrap_or_default();
            let named = [concat!("crate::", "commands::"), list]
                .into_iter()
                .filter_map(|path| code.split_once(path))
                .map(|(_, rest)| rest.split(|c: char| !c.is_alphanumeric() && c != '_'));
            for other in named.filter_map(|mut words| words.next()) {
                if other != command {
                    faults.push(format!(
                        "{}:{}: `{command}` uses the command `{other}`; what both need stands beside the commands",
                        file.path,
                        number + 1
                    ));
                }
            }
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_that_use_another_one_are_found_in_every_form() {
        let found = |path: &str, text: &str| {
            let path = format!("{COMMANDS}{path}");
            commands_stand_alone(&Repository::of(&[(path.as_str(), text)])).len()
        };
        let absolute = concat!("use crate::", "commands::eval::size;\n");
        assert_eq!(found("predict.rs", absolute), 1);
        assert_eq!(found("eval/texts.rs", absolute), 0);
        assert_eq!(found("predict.rs", "use super::eval::size;\n"), 1);
        assert_eq!(found("predict/tokens.rs", "use super::softmax;\n"), 0);
        assert_eq!(
            found("predict/tokens.rs", "use super::super::eval::size;\n"),
            1
        );
        let in_tests = "mod tests {\n    use super::*;\n}\n";
        assert_eq!(found("predict.rs", in_tests), 0);
    }
}

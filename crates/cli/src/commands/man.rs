//! `afar man`: the manual pages, made from the same definition as the help.

use std::io;
use std::path::Path;

use clap_mangen::Man;

use crate::args::ManArgs;
use crate::commands::completions::visible;
use crate::console::{say, write_stdout};
use crate::exit::Exit;

/// Prints a page, or writes all of them.
pub(crate) fn cmd_man(args: &ManArgs) -> Exit {
    let pages = match pages() {
        Ok(pages) => pages,
        Err(error) => {
            say(&format!("man: {error}"));
            return Exit::Failed;
        }
    };
    if let Some(directory) = &args.output_dir {
        return match write_all(&pages, directory) {
            Ok(()) => Exit::Status(0),
            Err(error) => {
                say(&format!("man: cannot write to {}: {error}", directory.display()));
                Exit::Failed
            }
        };
    }
    let name = args.command.as_ref().map_or("afar".to_owned(), |command| format!("afar-{command}"));
    match pages.iter().find(|page| page.name == name) {
        Some(page) => write_stdout(&page.text),
        None => {
            say(&format!("man: there is no page {name}"));
            Exit::Failed
        }
    }
}

struct Page {
    name: String,
    text: Vec<u8>,
}

fn pages() -> io::Result<Vec<Page>> {
    let mut command = visible();
    command.build();
    let mut pages = vec![page("afar", command.clone())?];
    for sub in command.get_subcommands() {
        let name = format!("afar-{}", sub.get_name());
        pages.push(page(&name, sub.clone())?);
    }
    Ok(pages)
}

fn page(name: &str, command: clap::Command) -> io::Result<Page> {
    let mut text = Vec::new();
    Man::new(command).title(name.to_uppercase()).section("1").render(&mut text)?;
    Ok(Page { name: name.to_owned(), text })
}

fn write_all(pages: &[Page], directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    for page in pages {
        std::fs::write(directory.join(format!("{}.1", page.name)), &page.text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_outcome_is_in_it() {
        let pages = pages().unwrap();
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        for name in ["afar", "afar-run", "afar-serve", "afar-demo", "afar-keys", "afar-trust"] {
            assert!(names.contains(&name), "{name}");
        }
        assert!(!names.contains(&"afar-supervisor"));
        let run = pages.iter().find(|page| page.name == "afar-run").unwrap();
        let text = String::from_utf8(run.text.clone()).unwrap();
        for word in ["streams_left_open", "max_rss_bytes", "blake3", "finished"] {
            assert!(text.contains(word), "{word}");
        }
    }
}

//! Documents that a bench writes, with the parts of them that it leaves alone.

use std::fs;
use std::path::Path;
use std::process::Command;

/// Ends the bench: what it measures does not work. Unwinds, so that no agent is left behind.
pub fn fail(text: &str) -> ! {
    println!("{text}");
    std::panic::resume_unwind(Box::new(()))
}

/// The argument after this one.
pub fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|given| given != name).nth(1)
}

/// What stands between `<!-- name -->` and `<!-- /name -->`.
pub fn part(text: &str, name: &str) -> Option<String> {
    let begun = text.split_once(&format!("<!-- {name} -->"))?.1;
    Some(begun.split_once(&format!("<!-- /{name} -->"))?.0.to_owned())
}

/// A part of a document, as it is in the file that is there, else this.
pub fn kept(file: &Path, name: &str, otherwise: &str) -> String {
    let old = fs::read_to_string(file).unwrap_or_default();
    let body = part(&old, name).unwrap_or_else(|| format!("\n{otherwise}\n"));
    format!("<!-- {name} -->{body}<!-- /{name} -->\n")
}

/// Puts another text between the marks.
pub fn replace(file: &Path, name: &str, body: &str) {
    let old = fs::read_to_string(file).unwrap_or_default();
    let fresh = format!("<!-- {name} -->\n{body}\n<!-- /{name} -->");
    let text = match part(&old, name) {
        Some(part) => old.replace(&format!("<!-- {name} -->{part}<!-- /{name} -->"), &fresh),
        None => format!("{old}\n{fresh}\n"),
    };
    fs::write(file, text).unwrap();
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    output
        .map_or_else(|_| String::new(), |it| String::from_utf8_lossy(&it.stdout).trim().to_owned())
}

pub fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// Machine, kernel, date and commit: one line each.
pub fn machine() -> Vec<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = cpu.lines().filter(|line| line.starts_with("processor")).count();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib: u64 = memory
        .lines()
        .find_map(|line| {
            line.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let kernel = kernel.split('-').next().unwrap_or_default().trim();
    vec![
        format!(
            "{} × {}, {} GiB of memory, Linux {kernel} on {}",
            cores,
            model.trim_start_matches([' ', '\t', ':']).trim(),
            kib.div_ceil(1 << 20),
            std::env::consts::ARCH
        ),
        format!(
            "{}, commit {}",
            said("date", &["-u", "+%Y-%m-%d"]),
            said("git", &["rev-parse", "--short", "HEAD"])
        ),
    ]
}

/// A table in Markdown.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: Vec<&str>| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head.to_vec());
    text.push_str(&line(head.iter().map(|_| "---").collect()));
    for row in rows {
        text.push_str(&line(row.iter().map(String::as_str).collect()));
    }
    text
}

//! `chiton retry`: makes the running agent forget what failed.

use std::path::Path;

use super::{FAILED, NOT_RUNNING, complain, print, status};

pub(super) fn run(config: Option<&Path>, hash: Option<&str>) -> u8 {
    let socket = status::socket(config);
    let request = format!("retry {}", hash.unwrap_or_default());
    let document = match status::ask(&socket, request.trim_end()) {
        Ok(document) => document,
        Err(error) => {
            complain(&format!("no agent answers at {}: {error}", socket.display()));
            return NOT_RUNNING;
        }
    };
    let answer: Option<serde_yaml::Value> = serde_yaml::from_str(&document).ok();
    match answer.as_ref().and_then(|answer| answer.get("forgotten")?.as_u64()) {
        Some(0) => print(match hash {
            Some(_) => "nothing that failed is remembered with this hash\n",
            None => "nothing that failed is remembered\n",
        }),
        Some(count) => {
            print(&format!("forgot {count} failure(s): the next offer is tried again\n"))
        }
        None => {
            complain(&format!("the agent at {} does not know this command", socket.display()));
            FAILED
        }
    }
}

//! Configs on their way to agents.

use chiton_proto::{Message as _, RemoteConfigStatuses, ServerToAgent};

use crate::client::{
    config_status, connect, heartbeat, post_report, push, report, server, server_with_file, shown,
    uid_text,
};

const ONE: [u8; 16] = [1; 16];
const TWO: [u8; 16] = [2; 16];

#[tokio::test]
async fn a_config_is_pushed_and_stops_after_applied() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report(ONE, 0)).await;
    let answer = push(&running, "env=test,region=eu", "greeting: hello").await;
    assert_eq!(answer["matched"], serde_json::json!([uid_text(ONE)]));
    assert_eq!(answer["failed_before"], serde_json::json!([]));

    let pushed = agent.next().await;
    assert_eq!(pushed.instance_uid[..], ONE);
    let offer = pushed.remote_config.unwrap();
    assert_eq!(offer.config.unwrap().config_map["main.yaml"].body, "greeting: hello");
    let hash = offer.config_hash;
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(answer["hash"], hex);

    let applied = config_status(ONE, 1, &hash, RemoteConfigStatuses::Applied);
    assert_eq!(agent.ask(&applied).await.remote_config, None);
    drop(agent);
    // A new connection whose first report names the hash is not offered it again.
    let mut agent = connect(running.opamp_addr()).await;
    let mut first = config_status(ONE, 0, &hash, RemoteConfigStatuses::Applied);
    first.agent_description = report(ONE, 0).agent_description;
    assert_eq!(agent.ask(&first).await.remote_config, None);
    let seen = shown(&running, ONE).await;
    assert_eq!(seen["remote_config_status"]["status"], "APPLIED");
    assert_eq!(seen["remote_config_status"]["hash"], hex);
    assert_eq!(seen["offered_config"]["files"]["main.yaml"], "greeting: hello");
}

#[tokio::test]
async fn a_config_goes_only_where_its_target_says() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report(ONE, 0)).await;
    let answer = push(&running, "env=test,region=us", "a: 1").await;
    assert_eq!(answer["matched"], serde_json::json!([]));
    assert_eq!(agent.ask(&heartbeat(ONE, 1)).await.remote_config, None);
    let answer = push(&running, &format!("instance_uid={}", uid_text(ONE)), "a: 2").await;
    assert_eq!(answer["matched"], serde_json::json!([uid_text(ONE)]));
    assert!(agent.next().await.remote_config.is_some());
}

#[tokio::test]
async fn a_config_that_waits_is_offered_to_a_new_agent() {
    let running = server().await;
    push(&running, "*", "a: 1").await;
    let mut agent = connect(running.opamp_addr()).await;
    assert_eq!(agent.ask(&heartbeat(ONE, 0)).await.remote_config, None, "it was not described yet");
    assert!(agent.ask(&report(ONE, 1)).await.remote_config.is_some());
}

#[tokio::test]
async fn a_failed_hash_is_not_offered_again_not_even_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("state.db");
    let running = server_with_file(&file).await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report(ONE, 0)).await;
    push(&running, "env=test", "bad: 1").await;
    let hash = agent.next().await.remote_config.unwrap().config_hash;
    assert_eq!(
        agent.ask(&config_status(ONE, 1, &hash, RemoteConfigStatuses::Failed)).await.remote_config,
        None
    );
    assert_eq!(shown(&running, ONE).await["remote_config_status"]["error_message"], "<b>no</b>");

    // The same contents again, even for another target, reach others only.
    let mut other = connect(running.opamp_addr()).await;
    other.ask(&config_status(TWO, 0, b"own", RemoteConfigStatuses::Applied)).await;
    other.ask(&report(TWO, 1)).await;
    other.ask(&heartbeat(TWO, 2)).await;
    let answer = push(&running, "*", "bad: 1").await;
    assert_eq!(answer["failed_before"], serde_json::json!([uid_text(ONE)]));
    assert_eq!(agent.ask(&heartbeat(ONE, 2)).await.remote_config, None);
    drop((agent, other));
    running.shutdown().await;

    let running = server_with_file(&file).await;
    let mut agent = connect(running.opamp_addr()).await;
    // Not even if the agent has forgotten all about it.
    assert_eq!(agent.ask(&report(ONE, 0)).await.remote_config, None);
    assert_eq!(shown(&running, ONE).await["assigned_config_failed"], true);
    let mut third = connect(running.opamp_addr()).await;
    assert!(
        third.ask(&report([3; 16], 0)).await.remote_config.is_some(),
        "the config itself survived"
    );
    push(&running, "env=test", "good: 1").await;
    assert!(agent.next().await.remote_config.is_some(), "a new hash is offered");
}

#[tokio::test]
async fn over_http_the_offer_waits_for_the_next_poll_and_repeats_until_reported() {
    let running = server().await;
    let poll = async |message: chiton_proto::AgentToServer| {
        let answer = post_report(running.opamp_addr(), "", &message.encode_to_vec()).await;
        assert_eq!(answer.status, 200);
        assert!(answer.head.contains("content-type: application/x-protobuf"));
        ServerToAgent::decode(&answer.body[..]).unwrap()
    };
    assert_eq!(poll(report(ONE, 0)).await.remote_config, None);
    push(&running, "env=test", "a: 1").await;
    let hash = poll(heartbeat(ONE, 1)).await.remote_config.unwrap().config_hash;
    assert!(poll(heartbeat(ONE, 2)).await.remote_config.is_some(), "the answer may have been lost");
    assert_eq!(
        poll(config_status(ONE, 3, &hash, RemoteConfigStatuses::Applying)).await.remote_config,
        None
    );
    assert_eq!(shown(&running, ONE).await["transport"], "http");
    assert_eq!(shown(&running, ONE).await["remote_config_status"]["status"], "APPLYING");
}

//! Reports and answers, identity, the ends of connections.

use std::time::Duration;

use bytes::Bytes;
use chiton_proto::{
    AgentConfigMap, AgentConfigObject, AgentDisconnect, AgentToServer, AgentToServerFlags,
    ComponentHealth, EffectiveConfig, Message as _, ServerErrorResponseType, ServerToAgent,
    ServerToAgentFlags,
};
use chiton_server::{Config, Limits, Server};
use tokio_tungstenite::tungstenite::Message;

use crate::client::{
    connect, get, heartbeat, in_time, post_report, quiet, report, server, shown, uid_text,
};

const ONE: [u8; 16] = [1; 16];

#[tokio::test]
async fn the_first_report_is_answered_and_shown() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    let files = [(
        "main.yaml".to_owned(),
        AgentConfigObject { body: Bytes::from("a: 1"), ..Default::default() },
    )];
    let answer = agent
        .ask(&AgentToServer {
            health: Some(ComponentHealth {
                healthy: true,
                status: "fine".to_owned(),
                ..Default::default()
            }),
            effective_config: Some(EffectiveConfig {
                config_map: Some(AgentConfigMap { config_map: files.into_iter().collect() }),
            }),
            ..report(ONE, 7)
        })
        .await;
    assert_eq!(answer.instance_uid[..], ONE);
    assert_eq!(
        answer.capabilities, 0x3f,
        "AcceptsStatus, OffersRemoteConfig, AcceptsEffectiveConfig, OffersPackages, AcceptsPackagesStatus, \
         OffersConnectionSettings"
    );
    assert_eq!((answer.flags, answer.error_response, answer.remote_config), (0, None, None));

    let seen = shown(&running, ONE).await;
    assert_eq!(seen["instance_uid"], uid_text(ONE));
    assert_eq!(seen["connected"], true);
    assert_eq!(seen["stale"], false);
    assert_eq!(seen["transport"], "websocket");
    assert_eq!(seen["sequence_num"], 7);
    assert_eq!(seen["capabilities"], serde_json::json!(["ReportsStatus", "AcceptsRemoteConfig"]));
    assert_eq!(seen["attributes"]["identifying"]["service.name"], "sample");
    assert_eq!(seen["attributes"]["non_identifying"]["region"], "eu");
    assert_eq!(seen["health"]["healthy"], true);
    assert_eq!(seen["health"]["status"], "fine");
    assert_eq!(seen["effective_config"]["main.yaml"], "a: 1");
    let list = get(running.rest_addr(), "/api/v1/agents").await.json();
    assert_eq!(list["agents"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_sequence_gap_asks_for_full_state() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    let full = ServerToAgentFlags::ReportFullState as u64;
    assert_eq!(agent.ask(&heartbeat(ONE, 5)).await.flags, full, "unknown");
    assert_eq!(agent.ask(&report(ONE, 6)).await.flags, 0);
    assert_eq!(agent.ask(&heartbeat(ONE, 7)).await.flags, 0);
    assert_eq!(agent.ask(&heartbeat(ONE, 9)).await.flags, full);
    assert_eq!(agent.ask(&heartbeat(ONE, 10)).await.flags, 0);
}

#[tokio::test]
async fn state_survives_a_restart_of_the_server() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("new/state.db");
    let running = crate::client::server_with_file(&file).await;
    connect(running.opamp_addr()).await.ask(&report(ONE, 0)).await;
    running.shutdown().await;

    let running = crate::client::server_with_file(&file).await;
    let seen = shown(&running, ONE).await;
    assert_eq!(seen["connected"], false);
    assert_eq!(seen["attributes"]["non_identifying"]["env"], "test");
    // The numbers go on where they were.
    let mut agent = connect(running.opamp_addr()).await;
    assert_eq!(agent.ask(&heartbeat(ONE, 1)).await.flags, 0);
}

#[tokio::test]
async fn a_living_duplicate_gets_a_new_uid() {
    let running = server().await;
    let mut first = connect(running.opamp_addr()).await;
    first.ask(&report(ONE, 0)).await;
    let mut second = connect(running.opamp_addr()).await;
    second.send(&report(ONE, 0)).await;
    // The first answers the server's ping while it waits for a message that does not come.
    let answer = tokio::select! {
        answer = second.next() => answer,
        pushed = first.next() => panic!("pushed: {pushed:?}"),
    };
    assert_eq!(answer.instance_uid[..], ONE);
    let new: [u8; 16] =
        answer.agent_identification.unwrap().new_instance_uid[..].try_into().unwrap();
    assert_ne!(new, ONE);
    assert_eq!(new[6] >> 4, 7, "UUIDv7");
    // What it said under the old uid before it saw the new one is answered in the same way.
    let again = second.ask(&heartbeat(ONE, 1)).await;
    assert_eq!(again.agent_identification.unwrap().new_instance_uid[..], new);
    assert_eq!(second.ask(&report(new, 2)).await.agent_identification, None);
    // The first was not disturbed.
    let answer = first.ask(&heartbeat(ONE, 1)).await;
    assert_eq!((answer.flags, answer.agent_identification), (0, None));
    let list = get(running.rest_addr(), "/api/v1/agents").await.json();
    assert_eq!(list["agents"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn a_dead_connection_gives_way() {
    let limits = Limits { duplicate_probe: Duration::from_millis(100), ..Limits::default() };
    let running = Server::start(Config { limits, ..quiet() }).await.unwrap();
    let mut dead = connect(running.opamp_addr()).await;
    dead.ask(&report(ONE, 0)).await;
    // Nobody reads from `dead` any more, so nobody answers its pings; the socket stays open.
    let mut back = connect(running.opamp_addr()).await;
    let answer = back.ask(&report(ONE, 1)).await;
    assert_eq!(answer.agent_identification, None);
    // The server closed the old one, and the new one is the agent's.
    while let Some(Ok(_)) = in_time(futures_util::StreamExt::next(&mut dead.socket)).await {}
    assert_eq!(shown(&running, ONE).await["connected"], true);
    assert_eq!(back.ask(&heartbeat(ONE, 2)).await.flags, 0);
}

#[tokio::test]
async fn an_agent_that_asks_for_a_uid_gets_one() {
    let running = server().await;
    let flags = AgentToServerFlags::RequestInstanceUid as u64;
    let mut agent = connect(running.opamp_addr()).await;
    let answer = agent.ask(&AgentToServer { flags, ..report(ONE, 0) }).await;
    assert_eq!(answer.instance_uid[..], ONE);
    let over_socket = answer.agent_identification.unwrap().new_instance_uid;
    assert_eq!(over_socket.len(), 16);

    let body = AgentToServer { flags, ..report(ONE, 0) }.encode_to_vec();
    let answer = post_report(running.opamp_addr(), "", &body).await;
    let over_http = ServerToAgent::decode(&answer.body[..])
        .unwrap()
        .agent_identification
        .unwrap()
        .new_instance_uid;
    assert_ne!(over_socket, over_http);
    // The temporary uid is nobody's.
    let list = get(running.rest_addr(), "/api/v1/agents").await.json();
    assert_eq!(list["agents"], serde_json::json!([]));
}

#[tokio::test]
async fn a_goodbye_is_answered_and_shown() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report(ONE, 0)).await;
    let goodbye = AgentToServer { agent_disconnect: Some(AgentDisconnect {}), ..heartbeat(ONE, 1) };
    assert_eq!(agent.ask(&goodbye).await.instance_uid[..], ONE);
    assert_eq!(shown(&running, ONE).await["connected"], false);
}

#[tokio::test]
async fn malformed_messages_are_answered_with_bad_request() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.send_raw(Message::Binary(Bytes::from_static(&[0, 0xff, 0xff]))).await;
    let error = agent.next().await.error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
    assert!(error.error_message.contains("AgentToServer"), "{}", error.error_message);
    let short = AgentToServer { instance_uid: Bytes::from_static(b"short"), ..report(ONE, 0) };
    let error = agent.ask(&short).await.error_response.unwrap();
    assert!(error.error_message.contains("16 bytes"), "{}", error.error_message);
    // The connection is still good.
    assert_eq!(agent.ask(&report(ONE, 0)).await.error_response, None);

    let answer = post_report(running.opamp_addr(), "", &[0xff, 0xff]).await;
    assert_eq!(answer.status, 400);
    let error = ServerToAgent::decode(&answer.body[..]).unwrap().error_response.unwrap();
    assert_eq!(error.r#type(), ServerErrorResponseType::BadRequest);
}

#[tokio::test]
async fn a_wrong_header_is_answered_and_ends_the_connection() {
    let running = server().await;
    for header in [&[1_u8][..], &[0x80; 11], &[]] {
        let mut agent = connect(running.opamp_addr()).await;
        let mut bytes = header.to_vec();
        if !header.is_empty() {
            bytes.extend(report(ONE, 0).encode_to_vec());
        }
        agent.send_raw(Message::Binary(bytes.into())).await;
        assert_eq!(
            agent.next().await.error_response.unwrap().r#type(),
            ServerErrorResponseType::BadRequest
        );
        assert_eq!(agent.close_code().await, 1002);
    }
    let mut agent = connect(running.opamp_addr()).await;
    agent.send_raw(Message::Text("hello".into())).await;
    assert_eq!(agent.close_code().await, 1003);
}

#[tokio::test]
async fn a_stopping_server_says_goodbye() {
    let running = server().await;
    let mut agent = connect(running.opamp_addr()).await;
    agent.ask(&report(ONE, 0)).await;
    let (code, ()) = tokio::join!(
        async {
            let code = agent.close_code().await;
            // Reading on sends our Close back.
            while let Some(Ok(_)) = in_time(futures_util::StreamExt::next(&mut agent.socket)).await
            {
            }
            code
        },
        in_time(running.shutdown())
    );
    assert_eq!(code, 1001);
}

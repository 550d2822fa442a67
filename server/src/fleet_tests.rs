#![expect(clippy::unwrap_used, reason = "a test stops at what it did not expect")]

use chiton_proto::{
    AgentDescription, AnyValue, KeyValue, RemoteConfigStatus, any_value::Value as Any,
};

use super::*;
use crate::package::{FileHash, Kind, Package, PackageId};

const ACCEPTS: u64 =
    AgentCapabilities::AcceptsRemoteConfig as u64 | AgentCapabilities::ReportsStatus as u64;
const SOCKET: Link = Link::WebSocket(ConnectionId(1));
const LATER_SOCKET: Link = Link::WebSocket(ConnectionId(2));
const FULL: u64 = ServerToAgentFlags::ReportFullState as u64;

fn at(millis: i64) -> Moment {
    Moment::from_db(millis)
}

fn uid(number: u8) -> InstanceUid {
    InstanceUid::from_wire(&[number; 16]).unwrap()
}

fn fleet() -> Fleet {
    Fleet::new(BTreeMap::new(), Vec::new(), Catalog::default(), 2)
}

/// Puts a config into force, and gives what is pushed.
fn publish(fleet: &mut Fleet, assignment: Assignment) -> Vec<(ConnectionId, ServerToAgent)> {
    let matched = fleet.matching(&assignment.target);
    fleet.publish(assignment);
    fleet.pushes(&matched)
}

fn text(key: &str, value: &str) -> KeyValue {
    let value = Some(AnyValue { value: Some(Any::StringValue(value.to_owned())) });
    KeyValue { key: key.to_owned(), value }
}

fn full(sequence_num: u64) -> AgentToServer {
    let non_identifying_attributes = vec![text("env", "test")];
    AgentToServer {
        sequence_num,
        capabilities: ACCEPTS,
        agent_description: Some(AgentDescription {
            non_identifying_attributes,
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn beat(sequence_num: u64) -> AgentToServer {
    AgentToServer { sequence_num, capabilities: ACCEPTS, ..Default::default() }
}

fn status(sequence_num: u64, hash: &ConfigHash, status: RemoteConfigStatuses) -> AgentToServer {
    let mut report =
        RemoteConfigStatus { last_remote_config_hash: hash.0.clone(), ..Default::default() };
    report.set_status(status);
    AgentToServer { remote_config_status: Some(report), ..beat(sequence_num) }
}

fn config(target: &str, body: &str) -> Assignment {
    let files = BTreeMap::from([("main.yaml".to_owned(), body.to_owned())]);
    let set = ConfigSet::new(files, 32, 1 << 20).unwrap();
    Assignment { target: Selector::parse(target).unwrap(), set, created: at(0) }
}

fn offered(answer: &ServerToAgent) -> Option<ConfigHash> {
    answer.remote_config.as_ref().map(|offer| ConfigHash(offer.config_hash.clone()))
}

#[test]
fn full_state_is_asked_for_when_something_was_missed() {
    let mut fleet = fleet();
    let mut flags = |message| fleet.receive(uid(1), SOCKET, message, at(0)).0.flags;
    assert_eq!(flags(beat(3)), FULL, "unknown agent");
    assert_eq!(flags(beat(4)), FULL, "in sequence, but never described");
    assert_eq!(flags(full(5)), 0);
    assert_eq!(flags(beat(6)), 0);
    assert_eq!(flags(beat(6)), FULL, "repeated");
    assert_eq!(flags(beat(9)), FULL, "gap");
    assert_eq!(flags(beat(10)), 0, "asked once for one gap");
    assert_eq!(flags(full(0)), 0, "a new process with a full report");
    let mut partly = full(7);
    partly.capabilities |= AgentCapabilities::ReportsHealth as u64;
    assert_eq!(flags(partly), FULL, "a gap, and the promised health is not there");
}

#[test]
fn the_last_number_is_followed_by_zero() {
    let mut fleet = fleet();
    fleet.receive(uid(1), SOCKET, full(u64::MAX), at(0));
    assert_eq!(fleet.receive(uid(1), SOCKET, beat(0), at(0)).0.flags, 0);
}

#[test]
fn absent_parts_are_unchanged_and_a_full_report_replaces_all() {
    let mut fleet = fleet();
    let health = Some(chiton_proto::ComponentHealth { healthy: true, ..Default::default() });
    fleet.receive(uid(1), SOCKET, AgentToServer { health: health.clone(), ..full(0) }, at(0));
    fleet.receive(uid(1), SOCKET, beat(1), at(0));
    assert_eq!(fleet.agents().get(&uid(1)).unwrap().report.health, health);
    fleet.receive(uid(1), SOCKET, full(0), at(0));
    assert_eq!(fleet.agents().get(&uid(1)).unwrap().report.health, None);
}

#[test]
fn an_offer_is_made_once_a_connection_and_until_it_is_reported_over_http() {
    let mut fleet = fleet();
    let wanted = config("env=test", "a");
    let hash = wanted.set.hash().clone();
    publish(&mut fleet, wanted);
    let mut told = |link, message| offered(&fleet.receive(uid(1), link, message, at(0)).0);
    assert_eq!(told(SOCKET, full(0)), Some(hash.clone()));
    assert_eq!(told(SOCKET, beat(1)), None, "under way");
    assert_eq!(
        told(LATER_SOCKET, beat(2)),
        Some(hash.clone()),
        "the other connection may have lost it"
    );
    assert_eq!(told(Link::Http, beat(3)), Some(hash.clone()));
    assert_eq!(told(Link::Http, beat(4)), Some(hash.clone()));
    assert_eq!(told(Link::Http, status(5, &hash, RemoteConfigStatuses::Applying)), None);
    assert_eq!(told(Link::Http, beat(6)), None);
    assert_eq!(told(SOCKET, beat(7)), None);
}

#[test]
fn only_agents_that_accept_are_offered() {
    let mut fleet = fleet();
    publish(&mut fleet, config("*", "a"));
    let mut deaf = full(0);
    deaf.capabilities = AgentCapabilities::ReportsStatus as u64;
    assert_eq!(offered(&fleet.receive(uid(1), SOCKET, deaf, at(0)).0), None);
    // The capability may come later.
    assert!(offered(&fleet.receive(uid(1), SOCKET, beat(1), at(0)).0).is_some());
}

#[test]
fn a_failed_hash_is_never_offered_again() {
    let mut fleet = fleet();
    let wanted = config("*", "bad");
    let hash = wanted.set.hash().clone();
    fleet.receive(uid(1), SOCKET, full(0), at(0));
    assert_eq!(publish(&mut fleet, wanted.clone()).len(), 1);
    let (_, changes) =
        fleet.receive(uid(1), SOCKET, status(1, &hash, RemoteConfigStatuses::Failed), at(0));
    assert_eq!(changes.failed, Some(hash));
    // Another config in between, so that the last reported hash is no longer the failed one.
    let good = config("*", "good");
    assert_eq!(publish(&mut fleet, good.clone()).len(), 1);
    let (_, changes) = fleet.receive(
        uid(1),
        SOCKET,
        status(2, good.set.hash(), RemoteConfigStatuses::Applied),
        at(0),
    );
    assert_eq!(changes.failed, None);
    assert!(publish(&mut fleet, wanted).is_empty());
    assert_eq!(offered(&fleet.receive(uid(1), LATER_SOCKET, full(0), at(0)).0), None);
    // It failed on one agent; another may try it.
    assert!(offered(&fleet.receive(uid(2), Link::Http, full(0), at(0)).0).is_some());
}

#[test]
fn a_failure_without_a_hash_means_the_last_offer() {
    let mut fleet = fleet();
    let wanted = config("*", "bad");
    let hash = wanted.set.hash().clone();
    publish(&mut fleet, wanted);
    fleet.receive(uid(1), SOCKET, full(0), at(0));
    let nameless = status(1, &ConfigHash(Bytes::new()), RemoteConfigStatuses::Failed);
    assert_eq!(fleet.receive(uid(1), SOCKET, nameless, at(0)).1.failed, Some(hash));
    assert_eq!(offered(&fleet.receive(uid(1), LATER_SOCKET, beat(2), at(0)).0), None);
}

#[test]
fn the_newest_matching_config_wins() {
    let mut fleet = fleet();
    fleet.receive(uid(1), Link::Http, full(0), at(0));
    let (narrow, wide) = (config("env=test", "narrow"), config("*", "wide"));
    let hash_of = |config: &Assignment| Some(config.set.hash().clone());
    let assigned = |fleet: &Fleet| fleet.assigned(uid(1)).map(|config| config.set.hash().clone());
    publish(&mut fleet, narrow.clone());
    assert_eq!(assigned(&fleet), hash_of(&narrow));
    publish(&mut fleet, wide.clone());
    assert_eq!(assigned(&fleet), hash_of(&wide));
    publish(&mut fleet, config("env=prod", "other"));
    assert_eq!(assigned(&fleet), hash_of(&wide));
    publish(&mut fleet, narrow.clone());
    assert_eq!(assigned(&fleet), hash_of(&narrow));
    assert_eq!(fleet.assignments().len(), 3, "one a target");
}

#[test]
fn a_lost_push_is_offered_with_the_next_answer() {
    let mut fleet = fleet();
    fleet.receive(uid(1), SOCKET, full(0), at(0));
    assert_eq!(publish(&mut fleet, config("*", "a")).len(), 1);
    fleet.not_delivered(uid(1));
    assert!(offered(&fleet.receive(uid(1), SOCKET, beat(1), at(0)).0).is_some());
}

#[test]
fn goodbye_and_the_end_of_the_connection_disconnect() {
    let mut fleet = fleet();
    let connected = |fleet: &Fleet| {
        fleet.agents().get(&uid(1)).unwrap().is_connected(at(0), Duration::from_secs(1))
    };
    fleet.receive(uid(1), SOCKET, full(0), at(0));
    assert!(connected(&fleet));
    fleet.disconnect(ConnectionId(2));
    assert!(connected(&fleet), "that was another connection");
    fleet.disconnect(ConnectionId(1));
    assert!(!connected(&fleet));
    fleet.receive(uid(1), Link::Http, beat(1), at(0));
    assert!(connected(&fleet));
    let goodbye = AgentToServer { agent_disconnect: Some(Default::default()), ..beat(2) };
    let (answer, changes) = fleet.receive(uid(1), Link::Http, goodbye, at(0));
    assert_eq!(answer.instance_uid, uid(1).to_wire());
    assert!(!connected(&fleet));
    assert!(changes.report.is_some_and(|report| report.agent_disconnect.is_none()));
}

#[test]
fn a_polling_agent_that_falls_silent_is_not_connected() {
    let mut fleet = fleet();
    fleet.receive(uid(1), Link::Http, full(0), at(0));
    let agent = fleet.agents().get(&uid(1)).unwrap();
    let bound = Duration::from_millis(100);
    assert!(agent.is_connected(at(100), bound) && !agent.is_stale(at(100), bound));
    assert!(!agent.is_connected(at(101), bound) && agent.is_stale(at(101), bound));
}

#[test]
fn a_full_house_forgets_the_longest_silent_or_asks_to_come_back() {
    let mut fleet = fleet();
    fleet.receive(uid(1), Link::Http, full(0), at(0));
    fleet.receive(uid(2), Link::Http, full(0), at(1));
    let (answer, changes) = fleet.receive(uid(3), Link::Http, full(0), at(3_600_000));
    assert_eq!(answer.error_response.unwrap().r#type(), ServerErrorResponseType::Unavailable);
    assert_eq!(answer.instance_uid, uid(3).to_wire());
    assert_eq!(changes.forgotten, None);
    let (answer, changes) = fleet.receive(uid(3), Link::Http, full(0), at(3_600_001));
    assert_eq!(answer.error_response, None);
    assert_eq!(changes.forgotten, Some(uid(1)));
    assert_eq!(fleet.agents().len(), 2);
}

#[test]
fn a_report_that_is_too_large_is_refused_and_changes_nothing() {
    let mut fleet = fleet();
    let mut large = full(0);
    large.agent_description = Some(AgentDescription {
        identifying_attributes: vec![text("k", &"v".repeat(MAX_KEPT_REPORT))],
        ..Default::default()
    });
    let (answer, changes) = fleet.receive(uid(1), SOCKET, large, at(0));
    assert_eq!(answer.error_response.unwrap().r#type(), ServerErrorResponseType::BadRequest);
    assert!(changes.report.is_none() && fleet.agents().is_empty());
}

#[test]
fn heartbeats_are_written_down_now_and_then() {
    let mut fleet = fleet();
    let mut saved =
        |message, time| fleet.receive(uid(1), SOCKET, message, at(time)).1.report.is_some();
    assert!(saved(full(0), 0));
    assert!(!saved(beat(1), 30_000));
    assert!(saved(beat(2), 60_000));
    assert!(!saved(beat(3), 90_000));
}

/// Version 1 of the package `a`, offered to every agent.
fn with_packages(mut fleet: Fleet) -> (Fleet, Bytes) {
    let id = PackageId::new("a", "1").unwrap();
    let package =
        Package::new(id.clone(), Kind::TopLevel, FileHash([1; 32]), 1, at(0), Bytes::new());
    let target = Selector::parse("*").unwrap();
    let offer = PackageOffer::new(target, vec![id], 4 << 20, at(0)).unwrap();
    fleet.catalog_mut().insert(package);
    fleet.catalog_mut().offer(offer.clone());
    let hash = fleet.catalog().hash(&offer).0;
    (fleet, hash)
}

fn takes_packages(message: AgentToServer) -> AgentToServer {
    let capabilities = message.capabilities | AgentCapabilities::AcceptsPackages as u64;
    AgentToServer { capabilities, ..message }
}

fn offered_packages(answer: &ServerToAgent) -> Option<Bytes> {
    answer.packages_available.as_ref().map(|offer| offer.all_packages_hash.clone())
}

#[test]
fn packages_are_offered_once_a_connection_and_until_they_are_taken_up_over_http() {
    let (mut fleet, hash) = with_packages(fleet());
    let mut told = |link, message| {
        let answer = fleet.receive(uid(1), link, takes_packages(message), at(0)).0;
        assert_eq!(answer.remote_config, None);
        offered_packages(&answer)
    };
    assert_eq!(told(SOCKET, beat(0)), None, "it was not described yet");
    assert_eq!(told(SOCKET, full(1)), Some(hash.clone()));
    assert_eq!(told(SOCKET, beat(2)), None, "under way");
    assert_eq!(told(LATER_SOCKET, beat(3)), Some(hash.clone()), "the other one may have lost it");
    assert_eq!(told(Link::Http, beat(4)), Some(hash.clone()));
    assert_eq!(told(Link::Http, beat(5)), Some(hash.clone()));
    let package_statuses = Some(chiton_proto::PackageStatuses {
        server_provided_all_packages_hash: hash,
        ..Default::default()
    });
    assert_eq!(told(Link::Http, AgentToServer { package_statuses, ..beat(6) }), None);
    assert_eq!(told(LATER_SOCKET, beat(7)), None);
}

#[test]
fn a_message_that_was_lost_is_repeated_whole() {
    let (mut fleet, hash) = with_packages(fleet());
    let config = config("*", "a");
    fleet.receive(uid(1), SOCKET, takes_packages(full(0)), at(0));
    fleet.not_delivered(uid(1));
    let pushed = publish(&mut fleet, config.clone());
    assert_eq!(pushed.len(), 1);
    fleet.not_delivered(uid(1));
    let answer = fleet.receive(uid(1), SOCKET, takes_packages(beat(1)), at(0)).0;
    assert_eq!(offered(&answer).as_ref(), Some(config.set.hash()));
    assert_eq!(offered_packages(&answer), Some(hash));
}

#[test]
fn a_goodbye_is_answered_without_offers() {
    let (mut fleet, _) = with_packages(fleet());
    let agent_disconnect = Some(chiton_proto::AgentDisconnect {});
    let goodbye = AgentToServer { agent_disconnect, ..takes_packages(full(0)) };
    assert_eq!(offered_packages(&fleet.receive(uid(1), SOCKET, goodbye, at(0)).0), None);
}

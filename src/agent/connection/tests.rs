//! Offers that come without end.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use chiton_proto::OpAmpConnectionSettings;

use super::*;
use crate::clock::Wall;
use crate::settings;

fn rules() -> Rules {
    let text = "opamp: { server: { endpoint: wss://a } }";
    let environment = BTreeMap::<&str, &str>::new();
    let own = settings::from_text(text, "test", &environment).unwrap().settings.server;
    let renew_before = Duration::ZERO;
    Rules { own, directory: PathBuf::from("/s"), accepts: true, enroll: None, renew_before }
}

#[test]
fn a_server_with_another_offer_in_each_answer_does_not_wear_out_the_flash() {
    let mut connections = Connections::new(rules(), Found::default());
    let at = |seconds| Now {
        mono: Mono(Duration::from_secs(seconds)),
        wall: Wall(Duration::from_secs(seconds)),
    };
    let mut writes = 0;
    let mut offer = |number: u32, now: Now| {
        let mut orders = Vec::new();
        let offers = ConnectionSettingsOffers {
            hash: number.to_be_bytes().to_vec().into(),
            opamp: Some(OpAmpConnectionSettings {
                destination_endpoint: format!("wss://other{number}"),
                ..OpAmpConnectionSettings::default()
            }),
            ..ConnectionSettingsOffers::default()
        };
        connections.offered(offers, now, &mut orders);
        if orders.iter().any(|order| matches!(order, Order::Remember(_))) {
            writes += 1;
            connections.remembered(Ok(()), now, &mut orders);
        }
        writes
    };
    for number in 0..OFFERS_AT_ONCE + 100 {
        offer(number, at(999_990));
    }
    assert_eq!(offer(5_000, at(1_000_019)), OFFERS_AT_ONCE);
    assert_eq!(offer(5_001, at(1_000_020)), OFFERS_AT_ONCE + 1);
    assert_eq!(offer(5_002, at(1_000_021)), OFFERS_AT_ONCE + 1);
    assert_eq!(offer(5_003, at(1_000_080)), OFFERS_AT_ONCE + 2);
}

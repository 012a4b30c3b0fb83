//! Which event is which, and what its ids and times are. All of it is arithmetic over the event's number.
//!
//! The model is the one of the NEXMark suite in Apache Beam, which Flink's benchmark took over: of 50 events in a row, the
//! first is a person, three are auctions, 46 are bids; bids go to recent auctions by recent people, and half of them to
//! a hot auction, three quarters of them by a hot bidder.

use crate::random::{below_u64, word};

/// Persons, auctions and bids in a row.
const PERSONS: u64 = 1;
const AUCTIONS: u64 = 3;
/// Events in a row that hold each kind in its proportion.
pub(super) const CYCLE: u64 = 50;
/// More events than this are refused, so that no arithmetic overflows.
pub(super) const EVENTS_MAX: u64 = 1_000_000_000_000;

const FIRST_PERSON: u64 = 1000;
const FIRST_AUCTION: u64 = 1000;
/// People who may still bid or sell, and auctions that may still get bids.
const ACTIVE_PEOPLE: u64 = 1000;
const IN_FLIGHT_AUCTIONS: u64 = 100;
/// Bids and auctions may name people and auctions that come so much later.
const PERSON_LEAD: u64 = 10;
const AUCTION_LEAD: u64 = 10;
/// One of so many people or auctions is hot.
const HOT_STRIDE: u64 = 100;
/// One of so many picks is not hot.
const HOT_AUCTION_RATIO: u64 = 2;
const HOT_SELLER_RATIO: u64 = 4;
const HOT_BIDDER_RATIO: u64 = 4;
/// Multiplying by a prime that is greater than every group permutes the group.
const DISORDER_PRIME: u64 = 1_299_709;

/// The three tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Person,
    Auction,
    Bid,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Person => "person",
            Kind::Auction => "auction",
            Kind::Bid => "bid",
        }
    }

    /// The places in a cycle whose events are of this kind.
    pub(super) fn places(self) -> std::ops::Range<u64> {
        match self {
            Kind::Person => 0..PERSONS,
            Kind::Auction => PERSONS..PERSONS + AUCTIONS,
            Kind::Bid => PERSONS + AUCTIONS..CYCLE,
        }
    }
}

/// Lanes of random words, one for each independent draw of an event.
pub(super) mod lane {
    pub(in super::super) const IDS: u64 = 1;
    pub(in super::super) const MORE_IDS: u64 = 2;
    pub(in super::super) const PRICE: u64 = 3;
    pub(in super::super) const CHANNEL: u64 = 4;
    pub(in super::super) const EXTRA: u64 = 5;
    pub(in super::super) const NAME: u64 = 6;
    pub(in super::super) const TEXT: u64 = 7;
    pub(in super::super) const PLACE: u64 = 8;
    pub(in super::super) const LENGTH: u64 = 9;
    pub(in super::super) const CARD: u64 = 10;
}

/// Everything that decides what event `n` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    /// Events in a second of event time.
    pub event_rate: u64,
    /// Event time of event 0, microseconds since 1970.
    pub start_us: i64,
    /// Event times are permuted within groups of so many events.
    pub disorder: u64,
}

/// Persons among the events up to and including `n`, less one: each cycle begins with one.
#[inline(always)]
fn last_person(n: u64) -> u64 {
    n / CYCLE
}

/// Auctions among the events up to and including `n`, less one; before the first auction: 0.
#[inline(always)]
fn last_auction(n: u64) -> u64 {
    (n / CYCLE * AUCTIONS + (n % CYCLE).min(AUCTIONS)).saturating_sub(1)
}

impl Stream {
    #[inline(always)]
    pub(super) fn word(&self, n: u64, lane: u64) -> u64 {
        word(self.seed, n, lane)
    }

    /// Event time of event `n`, in microseconds since 1970.
    #[inline(always)]
    pub(super) fn time_us(&self, n: u64) -> i64 {
        let n = if self.disorder > 1 {
            let first = n - n % self.disorder;
            first + (n - first).wrapping_mul(DISORDER_PRIME) % self.disorder
        } else {
            n
        };
        // Exact where the rate divides a million; elsewhere monotone, and less than a microsecond off.
        self.start_us.saturating_add((n as f64 * (1e6 / self.event_rate as f64)) as i64)
    }

    pub(super) fn person_id(n: u64) -> i64 {
        (last_person(n) + FIRST_PERSON) as i64
    }

    pub(super) fn auction_id(n: u64) -> i64 {
        (last_auction(n) + FIRST_AUCTION) as i64
    }

    /// A person who is active at event `n`, or will soon be.
    #[inline(always)]
    fn some_person(n: u64, word: u64) -> u64 {
        let people = last_person(n) + 1;
        let active = people.min(ACTIVE_PEOPLE);
        people - active + below_u64(word, active + PERSON_LEAD)
    }

    pub(super) fn seller(&self, n: u64) -> i64 {
        let word = self.word(n, lane::IDS);
        let id = if below_u64(self.word(n, lane::MORE_IDS), HOT_SELLER_RATIO) > 0 {
            last_person(n) / HOT_STRIDE * HOT_STRIDE
        } else {
            Self::some_person(n, word)
        };
        (id + FIRST_PERSON) as i64
    }

    #[inline(always)]
    pub(super) fn bid_auction(&self, n: u64) -> i64 {
        let word = self.word(n, lane::IDS);
        let last = last_auction(n);
        // The top bit says hot or not, the others which.
        let id = if below_u64(word, HOT_AUCTION_RATIO) > 0 {
            last / HOT_STRIDE * HOT_STRIDE
        } else {
            let first = last.saturating_sub(IN_FLIGHT_AUCTIONS);
            first + below_u64(word << 1, last - first + 1 + AUCTION_LEAD)
        };
        (id + FIRST_AUCTION) as i64
    }

    #[inline(always)]
    pub(super) fn bid_bidder(&self, n: u64) -> i64 {
        let word = self.word(n, lane::MORE_IDS);
        let id = if below_u64(word, HOT_BIDDER_RATIO) > 0 {
            last_person(n) / HOT_STRIDE * HOT_STRIDE + 1
        } else {
            Self::some_person(n, word << 2)
        };
        (id + FIRST_PERSON) as i64
    }

    /// When the auction of event `n` ends: as long after it as about so many auctions take that may be open at a time.
    pub(super) fn expires_us(&self, n: u64, time_us: i64) -> i64 {
        let horizon_us = (IN_FLIGHT_AUCTIONS * CYCLE / AUCTIONS) as f64 * 1e6 / self.event_rate as f64;
        let length = 1_000 + below_u64(self.word(n, lane::LENGTH), (2.0 * horizon_us) as u64);
        time_us.saturating_add(length as i64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: Stream = Stream { seed: 0, event_rate: 10_000, start_us: 0, disorder: 1 };

    #[test]
    fn ids_count_the_events_of_their_kind() {
        assert_eq!([0, 49, 50, 99, 100].map(Stream::person_id), [1000, 1000, 1001, 1001, 1002]);
        assert_eq!([1, 2, 3, 51, 53, 101].map(Stream::auction_id), [1000, 1001, 1002, 1003, 1005, 1006]);
        let places = [Kind::Person, Kind::Auction, Kind::Bid].map(|k| k.places().count());
        assert_eq!(places, [1, 3, 46]);
    }

    #[test]
    fn bids_prefer_what_is_hot_and_name_nothing_that_is_old() {
        let (mut hot_auctions, mut hot_bidders) = (0, 0);
        for n in 100_000..200_000u64 {
            let (auction, bidder) = (STREAM.bid_auction(n) as u64 - 1000, STREAM.bid_bidder(n) as u64 - 1000);
            assert!(auction.abs_diff(last_auction(n)) <= 100);
            assert!(bidder + 1000 >= last_person(n) && bidder <= last_person(n) + PERSON_LEAD);
            hot_auctions += u32::from(auction == last_auction(n) / 100 * 100);
            hot_bidders += u32::from(bidder == last_person(n) / 100 * 100 + 1);
        }
        assert!((50_000..51_500).contains(&hot_auctions), "{hot_auctions}");
        assert!((74_500..76_000).contains(&hot_bidders), "{hot_bidders}");
    }

    #[test]
    fn times_keep_order_unless_disorder_is_asked_for() {
        assert_eq!([0, 1, 10_000].map(|n| STREAM.time_us(n)), [0, 100, 1_000_000]);
        for event_rate in [3, 7_000_000, 1_000_000_000] {
            let stream = Stream { event_rate, ..STREAM };
            assert!((0..10_000).all(|n| stream.time_us(n) <= stream.time_us(n + 1)));
        }
        let shuffled = Stream { disorder: 100, ..STREAM };
        let mut times: Vec<i64> = (0..100).map(|n| shuffled.time_us(n)).collect();
        assert!(!times.is_sorted());
        times.sort_unstable();
        assert_eq!(times, (0..100).map(|n| STREAM.time_us(n)).collect::<Vec<_>>());
        assert_eq!(Stream { start_us: i64::MAX, ..STREAM }.time_us(5), i64::MAX);
    }
}

//! The columns of the three tables, made for many events at a time.

use std::sync::{Arc, LazyLock};

use arrow::array::{ArrayRef, Int64Array, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};

use crate::random::{Pool, Words, below, below_u64};

use super::events::{Kind, Stream, lane};

const BIGINT: DataType = DataType::Int64;
const TEXT: DataType = DataType::Utf8View;
const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Column {
    Time,
    Extra,
    PersonId,
    Name,
    EmailAddress,
    CreditCard,
    City,
    State,
    AuctionId,
    ItemName,
    Description,
    InitialBid,
    Reserve,
    Expires,
    Seller,
    Category,
    BidAuction,
    BidBidder,
    BidPrice,
    Channel,
    Url,
}

static PERSON: &[(&str, Column)] = &[
    ("id", Column::PersonId),
    ("name", Column::Name),
    ("email_address", Column::EmailAddress),
    ("credit_card", Column::CreditCard),
    ("city", Column::City),
    ("state", Column::State),
    ("date_time", Column::Time),
    ("extra", Column::Extra),
];

static AUCTION: &[(&str, Column)] = &[
    ("id", Column::AuctionId),
    ("item_name", Column::ItemName),
    ("description", Column::Description),
    ("initial_bid", Column::InitialBid),
    ("reserve", Column::Reserve),
    ("date_time", Column::Time),
    ("expires", Column::Expires),
    ("seller", Column::Seller),
    ("category", Column::Category),
    ("extra", Column::Extra),
];

static BID: &[(&str, Column)] = &[
    ("auction", Column::BidAuction),
    ("bidder", Column::BidBidder),
    ("price", Column::BidPrice),
    ("channel", Column::Channel),
    ("url", Column::Url),
    ("date_time", Column::Time),
    ("extra", Column::Extra),
];

impl Kind {
    /// Names and contents of the table's columns, in order.
    pub(super) fn columns(self) -> &'static [(&'static str, Column)] {
        match self {
            Kind::Person => PERSON,
            Kind::Auction => AUCTION,
            Kind::Bid => BID,
        }
    }

    /// Bytes of a row that the suite aims at; `extra` fills up to it, a fifth more or less.
    fn row_bytes(self) -> u32 {
        match self {
            Kind::Person => 200,
            Kind::Auction => 500,
            Kind::Bid => 100,
        }
    }

    /// What the other columns take of [`row_bytes`](Self::row_bytes), about.
    fn other_bytes(self) -> u32 {
        match self {
            Kind::Person => 72,
            Kind::Auction => 124,
            Kind::Bid => 32,
        }
    }
}

impl Column {
    pub(super) fn data_type(self) -> DataType {
        match self {
            Column::Time | Column::Expires => TIMESTAMP,
            Column::Extra
            | Column::Name
            | Column::EmailAddress
            | Column::CreditCard
            | Column::City
            | Column::State
            | Column::ItemName
            | Column::Description
            | Column::Channel
            | Column::Url => TEXT,
            _ => BIGINT,
        }
    }
}

const FIRST_NAMES: &[&str] =
    &["Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter"];
const LAST_NAMES: &[&str] = &["Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris"];
const CITIES: &[&str] =
    &["Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne"];
const STATES: &[&str] = &["AZ", "CA", "ID", "OR", "WA", "WY"];
const HOT_CHANNELS: &[&str] = &["Google", "Facebook", "Baidu", "Apple"];
/// Channels that are not hot.
const CHANNELS: u32 = 10_000;
/// One of so many bids comes over a channel that is not hot.
const HOT_CHANNELS_RATIO: u64 = 2;
const CATEGORIES: u64 = 5;
const FIRST_CATEGORY: u64 = 10;
const ITEM_NAME_BYTES: u32 = 20;
const DESCRIPTION_BYTES: u32 = 100;
const TEXT_BYTES_MIN: u32 = 3;

/// The texts that do not depend on options.
struct Texts {
    names: Words,
    cities: Words,
    states: Words,
    /// The hot channels first, then `channel-0` and so on; `urls` has the address of each.
    channels: Words,
    urls: Words,
    /// Letters with a space now and then.
    prose: Pool,
    /// Powers of ten for prices: 10^(6·i/1024) and 10^(6·i/1024²).
    coarse: Vec<f64>,
    fine: Vec<f64>,
}

static TEXTS: LazyLock<Texts> = LazyLock::new(|| {
    let names = FIRST_NAMES.iter().flat_map(|f| LAST_NAMES.iter().map(move |l| format!("{f} {l}")));
    let plain = (0..CHANNELS).map(|n| format!("channel-{n}"));
    let power = |unit: f64| (0..1024).map(|i| 10f64.powf(6.0 * f64::from(i) / unit)).collect();
    Texts {
        names: Words::new(names),
        cities: Words::new(CITIES),
        states: Words::new(STATES),
        channels: Words::new(HOT_CHANNELS.iter().map(|c| c.to_string()).chain(plain)),
        urls: Words::new((0..HOT_CHANNELS.len() as u64 + u64::from(CHANNELS)).map(url)),
        prose: Pool::new(0x6e65_786d, 13),
        coarse: power(1024.0),
        fine: power(1024.0 * 1024.0),
    }
});

/// The address that belongs to a channel: nine of ten that are not hot say in it which channel they are.
fn url(channel: u64) -> String {
    let part = |lane: u64| -> String {
        let word = crate::random::word(0x75_726c, channel, lane);
        (0..5).map(|i| char::from(b'a' + below(word >> (6 * i) & 0xffff_ffff, 26) as u8)).collect()
    };
    let hot = HOT_CHANNELS.len() as u64;
    let mut url = format!("https://www.nexmark.com/{}/{}/{}/item.htm?query=1", part(1), part(2), part(3));
    if channel >= hot && below_u64(crate::random::word(0x75_726c, channel, 4), 10) > 0 {
        let reversed = (channel - hot) as u32;
        url.push_str(&format!("&channel_id={}", reversed.reverse_bits() >> 1));
    }
    url
}

/// The columns `wanted` of the rows that are the events `events`, in that order.
pub(super) fn generate(stream: &Stream, kind: Kind, wanted: &[Column], events: &[u64]) -> Vec<ArrayRef> {
    wanted.iter().map(|column| generate_one(stream, kind, *column, events)).collect()
}

fn generate_one(stream: &Stream, kind: Kind, column: Column, events: &[u64]) -> ArrayRef {
    let texts = &*TEXTS;
    let bigint =
        |value: &dyn Fn(u64) -> i64| -> ArrayRef { Arc::new(events.iter().map(|n| value(*n)).collect::<Int64Array>()) };
    let picked = |words: &Words, lane: u64| -> ArrayRef {
        let count = words.len() as u64;
        Arc::new(words.pick(events.iter().map(|n| below_u64(stream.word(*n, lane), count) as usize), None))
    };
    let prose = |lane: u64, least: u32, most: u32| -> ArrayRef {
        let one = |n: &u64| {
            let word = stream.word(*n, lane);
            (word, least + below(word >> 32, most - least))
        };
        Arc::new(texts.prose.pick(events.iter().map(one), None))
    };
    match column {
        Column::Time => times(events.iter().map(|n| stream.time_us(*n))),
        Column::Expires => times(events.iter().map(|n| stream.expires_us(*n, stream.time_us(*n)))),
        Column::Extra => {
            let room = kind.row_bytes() - kind.other_bytes();
            prose(lane::EXTRA, room - room / 5, room + room / 5)
        }
        Column::PersonId => bigint(&Stream::person_id),
        Column::AuctionId => bigint(&Stream::auction_id),
        Column::Seller => bigint(&|n| stream.seller(n)),
        Column::Category => bigint(&|n| (FIRST_CATEGORY + below_u64(stream.word(n, lane::CHANNEL), CATEGORIES)) as i64),
        Column::InitialBid => bigint(&|n| price(texts, stream.word(n, lane::PRICE))),
        Column::Reserve => {
            bigint(&|n| price(texts, stream.word(n, lane::PRICE)) + price(texts, stream.word(n, lane::LENGTH) << 7))
        }
        Column::BidAuction => Arc::new(events.iter().map(|n| stream.bid_auction(*n)).collect::<Int64Array>()),
        Column::BidBidder => Arc::new(events.iter().map(|n| stream.bid_bidder(*n)).collect::<Int64Array>()),
        Column::BidPrice => {
            Arc::new(events.iter().map(|n| price(texts, stream.word(*n, lane::PRICE))).collect::<Int64Array>())
        }
        Column::Name => picked(&texts.names, lane::NAME),
        Column::City => picked(&texts.cities, lane::PLACE),
        Column::State => picked(&texts.states, lane::MORE_IDS),
        Column::ItemName => prose(lane::NAME, TEXT_BYTES_MIN, ITEM_NAME_BYTES),
        Column::Description => prose(lane::TEXT, TEXT_BYTES_MIN, DESCRIPTION_BYTES),
        Column::Channel => Arc::new(texts.channels.pick(events.iter().map(|n| channel(stream, *n)), None)),
        Column::Url => Arc::new(texts.urls.pick(events.iter().map(|n| channel(stream, *n)), None)),
        Column::EmailAddress => email_addresses(stream, events),
        Column::CreditCard => credit_cards(stream, events),
    }
}

fn times(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter_values(values))
}

/// Cents, from 1 to a million units of money, evenly over their logarithm.
#[inline(always)]
fn price(texts: &Texts, word: u64) -> i64 {
    let (coarse, fine) = ((word >> 54) as usize, (word >> 44) as usize & 1023);
    (texts.coarse[coarse] * texts.fine[fine] * 100.0).round() as i64
}

/// Index into the channels, and into their addresses.
#[inline(always)]
fn channel(stream: &Stream, n: u64) -> usize {
    let word = stream.word(n, lane::CHANNEL);
    if below_u64(word, HOT_CHANNELS_RATIO) > 0 {
        below(word, HOT_CHANNELS.len() as u32) as usize
    } else {
        HOT_CHANNELS.len() + below(word, CHANNELS) as usize
    }
}

fn email_addresses(stream: &Stream, events: &[u64]) -> ArrayRef {
    let mut text = String::new();
    let mut builder = arrow::array::StringViewBuilder::with_capacity(events.len());
    for n in events {
        let (a, b) = (stream.word(*n, lane::TEXT), stream.word(*n, lane::LENGTH));
        let letter = |word: u64, i: u32| char::from(b'a' + below(word >> (4 * i), 26) as u8);
        text.clear();
        text.extend((0..TEXT_BYTES_MIN + below(b >> 32, 5)).map(|i| letter(a, i)));
        text.push('@');
        text.extend((0..TEXT_BYTES_MIN + below(a >> 32, 3)).map(|i| letter(b, i)));
        text.push_str(".com");
        builder.append_value(&text);
    }
    Arc::new(builder.finish())
}

fn credit_cards(stream: &Stream, events: &[u64]) -> ArrayRef {
    let mut builder = arrow::array::StringViewBuilder::with_capacity(events.len());
    let mut text = *b"0000 0000 0000 0000";
    for n in events {
        let mut number = below_u64(stream.word(*n, lane::CARD), 10_000_000_000_000_000);
        for place in text.iter_mut().rev().filter(|c| **c != b' ') {
            *place = b'0' + (number % 10) as u8;
            number /= 10;
        }
        builder.append_value(std::str::from_utf8(&text).unwrap_or_default());
    }
    Arc::new(builder.finish())
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray, StringViewArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    const STREAM: Stream = Stream { seed: 0, event_rate: 10_000, start_us: 0, disorder: 1 };

    fn all(kind: Kind) -> Vec<ArrayRef> {
        let wanted: Vec<Column> = kind.columns().iter().map(|(_, c)| *c).collect();
        let events: Vec<u64> = (0..5_000 * 50).filter(|n| kind.places().contains(&(n % 50))).collect();
        generate(&STREAM, kind, &wanted, &events)
    }

    fn average(column: &ArrayRef) -> f64 {
        let texts: &StringViewArray = column.as_string_view();
        texts.lengths().map(f64::from).sum::<f64>() / texts.len() as f64
    }

    #[test]
    fn every_text_is_valid_and_of_the_length_that_the_suite_gives_it() {
        for kind in [Kind::Person, Kind::Auction, Kind::Bid] {
            for (column, (name, _)) in all(kind).iter().zip(kind.columns()) {
                column.to_data().validate_full().unwrap_or_else(|e| panic!("{name}: {e}"));
            }
        }
        let (person, auction, bid) = (all(Kind::Person), all(Kind::Auction), all(Kind::Bid));
        assert!((67.0..69.0).contains(&average(&bid[6])), "{}", average(&bid[6]));
        assert!((370.0..382.0).contains(&average(&auction[9])), "{}", average(&auction[9]));
        assert!((126.0..130.0).contains(&average(&person[7])), "{}", average(&person[7]));
        assert!((50.0..70.0).contains(&average(&bid[4])), "{}", average(&bid[4]));
        let cards: &StringViewArray = person[3].as_string_view();
        assert!(cards.iter().flatten().all(|c| c.len() == 19 && c.split(' ').all(|p| p.parse::<u32>().is_ok())));
    }

    #[test]
    fn prices_are_even_over_their_logarithm() {
        let bids = all(Kind::Bid);
        let prices = bids[2].as_primitive::<Int64Type>().values();
        assert!(prices.iter().all(|p| (100..=100_000_000).contains(p)));
        let below_thousand = prices.iter().filter(|p| **p < 100_000).count() as f64 / prices.len() as f64;
        assert!((0.49..0.51).contains(&below_thousand), "{below_thousand}");
    }
}

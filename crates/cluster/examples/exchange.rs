//! What the way between two workers takes: `exchange ROWS RUNS` sends so many rows with wide strings over a connection as workers have it
//! (the handshake, rows cut in pieces and written as Arrow IPC, frames, credits that come back when the rows have left the queue), and
//! then the same bytes over plain loopback TCP, in turn. Prints the medians, a line each: name, value, unit, CPU seconds.
//!
//! Both ends are in this process, so its CPU seconds are those of sender and receiver. What slots do with the rows is not in it.

use std::io::{BufWriter, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch, StringViewArray};
use arrow::datatypes::{DataType, Field, Schema};
use cluster::Identity;
use cluster::connection::{Connection, Pulse};
use cluster::frame;
use cluster::handshake::{Caller, Welcome, accept, call};
use cluster::message::{self, FromPeer, ToPeer};
use coord::Time;
use flow::{ChangeBatch, Epoch, Result, SlotId, TaskId};
use runtime::job::QUEUE_BYTES_MAX;
use runtime::{Counted, DeploymentId, GiveBack, Owed, Tick, ToSlot};

const BATCH_ROWS: usize = 8192;
/// Bytes of a row's text.
const TEXT_BYTES: usize = 120;
const SESSION: u64 = 1;
const PULSE: Pulse = Pulse { heartbeat: Duration::from_secs(1), timeout: Duration::from_secs(60) };
/// As the writing thread of a connection has it.
const BUFFER_BYTES: usize = 256 << 10;
/// Ticks of a second in `/proc/self/stat`.
const TICKS_PER_SECOND: f64 = 100.0;

fn batch(first: usize) -> ChangeBatch {
    let schema = Schema::new(vec![Field::new("k", DataType::Int64, false), Field::new("v", DataType::Utf8View, false)]);
    let keys = Int64Array::from_iter_values((first..first + BATCH_ROWS).map(|n| n as i64));
    let texts = (first..first + BATCH_ROWS).map(|n| format!("{:0width$}", n * 7919, width = TEXT_BYTES));
    let texts = StringViewArray::from_iter_values(texts);
    ChangeBatch::insert(RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(texts)]).expect("a batch"))
}

fn rows_of(changes: ChangeBatch) -> ToSlot {
    let (deployment, tick) = (DeploymentId(1), Tick::end_of(Epoch(2)));
    ToSlot::Exchange { deployment, task: TaskId(1), port: 0, tick, changes, owed: Owed::default() }
}

/// What is on its way: the sender waits while it is too much, as a level of a job does.
#[derive(Default)]
struct Credit {
    sent: Mutex<usize>,
    changed: Condvar,
}

impl Credit {
    fn take(&self, bytes: usize) {
        let mut sent = self.sent.lock().expect("no thread has failed");
        while *sent >= QUEUE_BYTES_MAX {
            sent = self.changed.wait(sent).expect("no thread has failed");
        }
        *sent += bytes;
    }

    fn give(&self, bytes: usize) {
        *self.sent.lock().expect("no thread has failed") -= bytes;
        self.changed.notify_all();
    }

    fn drained(&self) {
        let mut sent = self.sent.lock().expect("no thread has failed");
        while *sent > 0 {
            sent = self.changed.wait(sent).expect("no thread has failed");
        }
    }
}

fn cpu_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(')').next().unwrap_or("").split_whitespace().map(|f| f.parse().unwrap_or(0.0)).collect();
    fields.get(11).zip(fields.get(12)).map_or(0.0, |(user, system)| (user + system) / TICKS_PER_SECOND)
}

/// Seconds and CPU seconds of what `act` does.
fn measured(time: &Time, act: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let (begun_us, cpu) = (time.now_us(), cpu_s());
    act()?;
    Ok(((time.now_us() - begun_us) as f64 / 1e6, cpu_s() - cpu))
}

/// Sends the batches over a connection between two nodes; returns when all of them have left the other's queue.
fn exchange(batches: &[ChangeBatch], count: usize, received: &Arc<AtomicUsize>) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address").to_string();
    let identity = Identity::new(Some("measured".into()), String::new());
    let (mine, received) = (identity.clone(), Arc::clone(received));
    let receiver = std::thread::spawn(move || -> Result<()> {
        let (stream, _) = listener.accept().expect("a caller");
        let welcome =
            Welcome { cluster: "measured".into(), worker: 0, heartbeat: PULSE.heartbeat, timeout: PULSE.timeout };
        let (known, _, _) = accept(stream, &mine, |_| Ok(welcome))?;
        let beat = Box::new(|| message::frame(SESSION, &FromPeer::Beat));
        let (connection, mut incoming) = Connection::start(known, "to-peer", PULSE, false, beat)?;
        let give_back: GiveBack = Arc::new(move |counted| {
            connection.say(SESSION, &FromPeer::Credit(counted));
        });
        while let Ok(frame) = incoming.next_frame() {
            if let ToPeer::Slot(_, rows) = message::parse(&frame)?
                && let ToSlot::Exchange { changes, owed, .. } = message::join(rows, &frame.body, Some(&give_back))?
            {
                received.fetch_add(changes.num_rows(), Ordering::Relaxed);
                // They have left the queue.
                drop(owed);
            }
        }
        Ok(())
    });
    let (known, _) = call(&address, &identity, |_| Caller::Peer { session: SESSION, worker: 1 })?;
    let beat = Box::new(|| message::frame(SESSION, &ToPeer::Beat));
    let (connection, mut incoming) = Connection::start(known, "to-peer", PULSE, false, beat)?;
    let credit = Arc::new(Credit::default());
    let given = Arc::clone(&credit);
    let hears = std::thread::spawn(move || {
        while let Ok(frame) = incoming.next_frame() {
            if let Ok(FromPeer::Credit(counted)) = message::parse(&frame) {
                given.give(counted.bytes);
            }
        }
    });
    for n in 0..count {
        let changes = batches[n % batches.len()].clone();
        let bytes = changes.bytes();
        credit.take(bytes);
        let counted = Counted { deployment: DeploymentId(1), slot: SlotId(0), level: 0, bytes };
        for (rows, body) in message::split(rows_of(changes), Some(counted))? {
            connection.send(message::frame_with(SESSION, &ToPeer::Slot(SlotId(0), rows), body)?);
        }
    }
    credit.drained();
    connection.close();
    hears.join().expect("the thread that hears credits");
    receiver.join().expect("the receiving thread")
}

/// Sends the frames of the batches as bytes that nobody looks at.
fn raw(frames: &[Vec<u8>], count: usize) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    let receiver = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a caller");
        let (mut buffer, mut bytes) = (vec![0; BUFFER_BYTES], 0);
        loop {
            match stream.read(&mut buffer).expect("bytes") {
                0 => return bytes,
                n => bytes += n,
            }
        }
    });
    let stream = TcpStream::connect(address).expect("a listener");
    stream.set_nodelay(true).expect("a socket");
    let mut out = BufWriter::with_capacity(BUFFER_BYTES, stream);
    for n in 0..count {
        out.write_all(&frames[n % frames.len()]).expect("a reader");
    }
    out.flush().expect("a reader");
    drop(out);
    let sent: usize = (0..count).map(|n| frames[n % frames.len()].len()).sum();
    assert_eq!(receiver.join().expect("the receiving thread"), sent);
    Ok(())
}

fn median(mut values: Vec<(f64, f64)>) -> (f64, f64) {
    values.sort_by(|a, b| a.0.total_cmp(&b.0));
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).filter_map(|arg| arg.parse::<usize>().ok());
    let (rows, runs) = (args.next().unwrap_or(2_000_000), args.next().unwrap_or(5).max(1));
    let count = rows.div_ceil(BATCH_ROWS).max(1);
    let batches: Vec<ChangeBatch> = (0..count.min(32)).map(|n| batch(n * BATCH_ROWS)).collect();
    let mut frames = Vec::new();
    for changes in &batches {
        let mut bytes = Vec::new();
        for (rows, body) in message::split(rows_of(changes.clone()), None)? {
            let frame = message::frame_with(SESSION, &ToPeer::Slot(SlotId(0), rows), body)?;
            frame::write(&mut bytes, &frame).expect("a frame");
        }
        frames.push(bytes);
    }
    let bytes: usize = (0..count).map(|n| frames[n % frames.len()].len()).sum();
    let (time, received) = (Time::steady(), Arc::new(AtomicUsize::new(0)));
    let (mut over, mut plain) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        over.push(measured(&time, || exchange(&batches, count, &received))?);
        plain.push(measured(&time, || raw(&frames, count))?);
    }
    assert_eq!(received.load(Ordering::Relaxed), count * BATCH_ROWS * runs);
    let ((over_s, over_cpu), (plain_s, plain_cpu)) = (median(over), median(plain));
    println!("row {:.1} bytes 0", bytes as f64 / (count * BATCH_ROWS) as f64);
    println!("workers {:.1} MB/s {over_cpu:.2}", bytes as f64 / over_s / 1e6);
    println!("workers_rows {:.0} rows/s {over_cpu:.2}", (count * BATCH_ROWS) as f64 / over_s);
    println!("raw_tcp {:.1} MB/s {plain_cpu:.2}", bytes as f64 / plain_s / 1e6);
    println!("ratio {:.3} ratio {over_cpu:.2}", plain_s / over_s);
    Ok(())
}

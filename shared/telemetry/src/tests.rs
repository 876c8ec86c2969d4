//! Tests of the registry as its users see it.

use crate::*;

const REQUESTS: Definition = Definition::new("t_requests_total", "Requests", &["model", "code"]);
const OPEN: Definition = Definition::new("t_open", "Open", &[]);
const WAIT: Definition = Definition::new("t_wait_seconds", "Wait", &["model"]);
const LOAD: Definition = Definition::new("t_load", "Load", &["target"]);
const SEEN: Definition = Definition::new("t_seen_total", "Seen", &[]);

fn lines<'t>(text: &'t str, begin: &str) -> Vec<&'t str> {
    text.lines().filter(|l| l.starts_with(begin)).collect()
}

#[test]
fn handles_of_all_threads_are_summed() {
    let registry = Registry::new();
    let family = registry.counter(&REQUESTS);
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let handle = family.handle(&["m", "200"]);
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    handle.inc();
                }
                handle
            })
        })
        .collect();
    let held: Vec<Counter> = workers.into_iter().map(|w| w.join().unwrap()).collect();
    family.handle(&["m", "500"]).add(3);
    let wanted =
        ["t_requests_total{model=\"m\",code=\"200\"} 4000", "t_requests_total{model=\"m\",code=\"500\"} 3"];
    assert_eq!(lines(&registry.encode(), "t_requests_total"), wanted);
    drop(held);
    assert_eq!(lines(&registry.encode(), "t_requests_total"), wanted, "what was counted outlives its handle");
    assert_eq!(lines(&registry.encode(), "t_requests_total"), wanted, "and is not counted twice");
}

#[test]
fn gauges_show_what_exists() {
    let registry = Registry::new();
    let family = registry.gauge(&OPEN);
    let (a, b) = (family.handle(&[]), family.handle(&[]));
    a.set(5);
    b.add(3);
    b.add(-1);
    assert_eq!(lines(&registry.encode(), "t_open"), ["t_open 7"]);
    drop(a);
    assert_eq!(lines(&registry.encode(), "t_open"), ["t_open 2"]);
}

#[test]
fn histograms_are_cumulative_and_complete() {
    let registry = Registry::new();
    let family = registry.histogram(&WAIT, Buckets::new(0, 2, 1));
    let (a, b) = (family.handle(&["m"]), family.handle(&["m"]));
    for value in [0.5, 1.0, 1.25, 100.0] {
        a.observe(value);
    }
    b.observe(3.0);
    drop(b);
    let text = registry.encode();
    assert_eq!(lines(&text, "t_wait_seconds_sum"), ["t_wait_seconds_sum{model=\"m\"} 105.75"]);
    assert_eq!(lines(&text, "t_wait_seconds_count"), ["t_wait_seconds_count{model=\"m\"} 5"]);
    let buckets: Vec<(&str, &str)> = lines(&text, "t_wait_seconds_bucket")
        .into_iter()
        .map(|l| (l.split("le=\"").nth(1).unwrap().split('"').next().unwrap(), l.rsplit(' ').next().unwrap()))
        .collect();
    assert_eq!(
        buckets,
        [("1.0", "2"), ("1.5", "3"), ("2.0", "3"), ("3.0", "4"), ("4.0", "4"), ("+Inf", "5")]
    );
}

#[test]
fn callbacks_are_read_at_the_scrape() {
    let registry = Registry::new();
    let value = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let read = std::sync::Arc::clone(&value);
    registry.gauge_callback(&LOAD, move |out| {
        out.push(&["a"], read.load(std::sync::atomic::Ordering::Relaxed) as f64);
        out.push(&["b \"quoted\""], 0.25);
    });
    registry.counter_callback(&SEEN, |out| out.push(&[], 7.0));
    value.store(41, std::sync::atomic::Ordering::Relaxed);
    let text = registry.encode();
    assert_eq!(
        lines(&text, "t_load"),
        ["t_load{target=\"a\"} 41", "t_load{target=\"b \\\"quoted\\\"\"} 0.25"]
    );
    assert_eq!(lines(&text, "t_seen"), ["t_seen_total 7"]);
    assert!(text.ends_with("# EOF\n"));
    assert!(text.contains("# HELP t_seen Seen\n# TYPE t_seen counter\n"));
}

#[test]
fn callbacks_may_use_the_registry() {
    let registry = Registry::new();
    let inner = registry.clone();
    registry.gauge_callback(&LOAD, move |out| out.push(&["n"], inner.counter(&REQUESTS).len() as f64));
    assert!(registry.encode().contains("t_load{target=\"n\"} 0"));
}

#[test]
fn label_values_are_bounded() {
    let registry = Registry::new();
    let family = registry.counter(&REQUESTS);
    let mut local = Local::new(&family);
    for n in 0..MAX_VALUES + 50 {
        local.get(&[&format!("model-{n}"), "200"]).inc();
        family.handle(&[&format!("model-{n}"), "404"]).inc();
    }
    assert_eq!(family.len(), 2 * MAX_VALUES + 2);
    let text = registry.encode();
    assert!(text.contains("t_requests_total{model=\"other\",code=\"200\"} 50\n"));
    assert!(text.contains("t_requests_total{model=\"model-0\",code=\"404\"} 1\n"));
    let long = "\u{e9}".repeat(200);
    family.handle(&["model-1", &long]).inc();
    assert!(registry.encode().contains(&format!("code=\"{}\"", "\u{e9}".repeat(128))));
}

#[test]
fn series_are_bounded_over_all_labels() {
    let registry = Registry::new();
    let family = registry.counter(&REQUESTS);
    let mut local = Local::new(&family);
    for n in 0..MAX_SERIES + 5 {
        local.get(&[&format!("m{}", n % 500), &format!("c{}", n / 500)]).inc();
    }
    assert!(family.len() <= MAX_SERIES + 1);
    assert!(registry.encode().contains("t_requests_total{model=\"other\",code=\"other\"} 5\n"));
}

#[test]
fn callbacks_are_bounded() {
    let registry = Registry::new();
    registry.gauge_callback(&LOAD, |out| {
        for n in 0..MAX_SAMPLES + 10 {
            out.push(&[&n.to_string()], 2.0);
        }
    });
    let text = registry.encode();
    assert_eq!(lines(&text, "t_load").len(), MAX_SAMPLES + 1);
    assert!(text.contains("t_load{target=\"other\"} 20\n"));
}

#[test]
fn local_handles_are_found_again() {
    let registry = Registry::new();
    let family = registry.counter(&REQUESTS);
    let mut local = Local::new(&family);
    for (values, n) in [(["a", "bc"], 1), (["ab", "c"], 2), (["a", "bc"], 4), (["", "abc"], 8)] {
        local.get(&values).add(n);
    }
    assert_eq!(local.get(&["a", "bc"]).value(), 5);
    assert_eq!(local.get(&["ab", "c"]).value(), 2);
    assert_eq!(family.len(), 3);
}

#[test]
fn one_name_is_one_family() {
    let registry = Registry::new();
    registry.counter(&REQUESTS).handle(&["a", "1"]).inc();
    registry.counter(&REQUESTS).handle(&["a", "1"]).inc();
    assert_eq!(lines(&registry.encode(), "t_requests_total"), ["t_requests_total{model=\"a\",code=\"1\"} 2"]);
    // Another shape under the same name is not shown, and does no harm.
    registry.gauge(&REQUESTS).handle(&["a", "1"]).set(1);
    registry.gauge_callback(&REQUESTS, |out| out.push(&["a", "1"], 1.0));
    assert_eq!(lines(&registry.encode(), "t_requests").len(), 1);
}

#[test]
fn families_without_series_are_silent() {
    let registry = Registry::new();
    registry.counter(&REQUESTS);
    registry.gauge_callback(&LOAD, |_| {});
    assert_eq!(registry.encode(), "# EOF\n");
}

#[test]
fn product_names_are_well_formed_and_distinct() {
    let mut seen = std::collections::HashSet::new();
    for definition in names::ALL {
        assert!(definition.name.starts_with("fairlead_"));
        assert!(definition.name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        assert!(!definition.help.is_empty());
        assert!(seen.insert(definition.name));
    }
}

#[test]
fn log_settings_are_checked() {
    let filter = init_logs("info,=;", "text").unwrap_err().to_string();
    assert!(filter.contains("info,=;") && filter.contains("allowed"), "{filter}");
    let format = init_logs("info", "xml").unwrap_err().to_string();
    assert!(format.contains("xml") && format.contains("text, json"), "{format}");
}

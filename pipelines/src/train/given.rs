//! Settings as they are given: a TOML text, and `key=value`.

use std::str::FromStr;

use pyrograph_engine::diffusion::{GridError, Sampler, Spacing};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::config::TrainConfig;
use super::table;
use crate::error::values;
use crate::error::words::similar;
use crate::error::{Error, Result};

impl TrainConfig {
    /// Reads a TOML text and applies `key=value` overrides, such as `model.hidden=128`.
    ///
    /// # Errors
    /// Unknown keys, wrong types, impossible values.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self> {
        Self::default().with(text, overrides)
    }

    /// These settings with those of a TOML text and of `key=value` overrides in their place.
    ///
    /// # Errors
    /// Unknown keys, wrong types, impossible values.
    pub fn with(&self, text: &str, overrides: &[String]) -> Result<Self> {
        let fault = |reason: String| Error::Config { reason };
        let given: toml::Table = text.parse().map_err(|e: toml::de::Error| fault(e.to_string()))?;
        known(&given)?;
        let mut table = self.table()?;
        merge(&mut table, given);
        // All at once, as one of them may be the kind that others belong to.
        let mut given = toml::Table::new();
        for item in overrides {
            let (key, value) = item
                .split_once('=')
                .ok_or_else(|| fault(format!("`{item}`, expected key=value")))?;
            let (key, value) = (key.trim(), parse_value(key.trim(), value.trim())?);
            set(&mut given, key, value)?;
        }
        known(&given)?;
        merge(&mut table, given);
        if let Some(reason) = table::out_of_range(&table) {
            return Err(fault(reason));
        }
        named::<Sampler>(&mut table, "sampler")?;
        named::<Spacing>(&mut table, "spacing")?;
        let read = |table: toml::Table| table.try_into();
        let config: Self = read(table.clone()).map_err(|error| fault(in_words(&table, &error)))?;
        config.check()?;
        Ok(config)
    }
}

/// Lets a solver or a placement of steps be named as it is elsewhere, not only as a table.
fn named<T>(table: &mut toml::Table, key: &str) -> Result<()>
where
    T: FromStr<Err = GridError> + Serialize + DeserializeOwned,
{
    let defaults = table.get_mut("defaults").and_then(toml::Value::as_table_mut);
    let Some(value) = defaults.and_then(|defaults| defaults.get_mut(key)) else { return Ok(()) };
    let Some(name) = value.as_str().map(str::to_owned) else { return Ok(()) };
    if value.clone().try_into::<T>().is_ok() {
        return Ok(());
    }
    let fault = |reason: String| Error::Config { reason: format!("defaults.{key}: {reason}") };
    let found: T = name.parse().map_err(|error: GridError| fault(error.to_string()))?;
    *value = toml::Value::try_from(found).map_err(|error| fault(error.to_string()))?;
    Ok(())
}

/// What is wrong with a value of a table.
fn in_words(table: &toml::Table, error: &toml::de::Error) -> String {
    let said = error.to_string();
    let key = said.split_once("in `").and_then(|(_, rest)| Some(rest.split_once('`')?.0));
    let value = key.and_then(|key| table::find(table, key)).map(ToString::to_string);
    values::in_words(error.message(), key, value).unwrap_or_else(|| said.trim_end().to_owned())
}

/// Refuses a key that is no setting.
fn known(given: &toml::Table) -> Result<()> {
    let Some(key) = table::unknown_key(given, "") else {
        return Ok(());
    };
    let similar = similar(&table::similar(&key));
    Err(Error::Config { reason: format!("unknown setting `{key}`{similar}") })
}

/// The value of a key: one of TOML, or failing that a string.
fn parse_value(key: &str, text: &str) -> Result<toml::Value> {
    let wrapped: Result<toml::Table, _> = format!("value = {text}").parse();
    let value = wrapped.ok().and_then(|mut table| table.remove("value"));
    match value {
        Some(value) => Ok(value),
        None if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            let reason = format!("{key} is {text}, expected at most {}", i64::MAX);
            Err(Error::Config { reason })
        }
        None => Ok(toml::Value::String(text.to_owned())),
    }
}

/// Puts the values of `over` in place of those of `base`, table by table; a table of another `kind` replaces the whole,
/// but for the model, whose kinds have the same settings.
fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(inner)), toml::Value::Table(value))
                if key == "model"
                    || value.get("kind").is_none_or(|kind| inner.get("kind") == Some(kind)) =>
            {
                merge(inner, value);
            }
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// Puts a value at a dotted key.
pub(super) fn set(table: &mut toml::Table, key: &str, value: toml::Value) -> Result<()> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((first, rest)) => {
            let inner = table
                .entry(first)
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .ok_or_else(|| Error::Config {
                    reason: format!("`{first}` is not a table, in `{key}`"),
                })?;
            set(inner, rest, value)
        }
    }
}

#[cfg(test)]
mod tests {
    use pyrograph_engine::diffusion::{NoiseSchedule, Variance};

    use super::super::shape::{Condition, Kind};
    use super::*;

    #[test]
    fn files_name_only_what_differs_and_overrides_win() {
        let text = "steps = 7\n[model]\nhidden = 64\n";
        let overrides = ["model.hidden=32".to_owned(), "model.kind=dit".to_owned()];
        let config = TrainConfig::parse(text, &overrides).expect("valid");
        assert_eq!((config.steps, config.model.hidden), (7, 32));
        assert_eq!(config.model.kind, Kind::Dit);
        assert_eq!(config.batch, TrainConfig::default().batch);
        let config = TrainConfig::parse("[defaults]\nsteps = 3\n", &[]).expect("valid");
        assert_eq!(config.defaults.steps, 3);
        let flow = "[process.schedule]\nkind = \"rectified_flow\"\nshift = 2.0\n";
        let config = TrainConfig::parse(flow, &[]).expect("valid");
        assert_eq!(config.process.schedule, NoiseSchedule::RectifiedFlow { shift: 2.0 });
        for (name, sampler) in [
            ("ddpm", Sampler::Ddpm { variance: Variance::Learned }),
            ("DPM++ 2M", Sampler::DpmPp2m),
            ("dpm_pp2m", Sampler::DpmPp2m),
            ("{ ddim = { eta = 0.5 } }", Sampler::Ddim { eta: 0.5 }),
        ] {
            let given = [format!("defaults.sampler={name}"), "defaults.spacing=leading".into()];
            let config = TrainConfig::parse("", &given).expect(name);
            assert_eq!(config.defaults.sampler, sampler);
            assert_eq!(config.defaults.spacing, Some(Spacing::Leading { offset: 0 }));
        }
        // In any order, a kind leaves the settings of another behind.
        let flow = ["process.schedule.shift=2.0", "process.schedule.kind=rectified_flow"];
        for overrides in [flow, [flow[1], flow[0]]] {
            let config = TrainConfig::parse("", &overrides.map(str::to_owned)).expect("valid");
            assert_eq!(config.process.schedule, NoiseSchedule::RectifiedFlow { shift: 2.0 });
        }
    }

    #[test]
    fn mistakes_are_named() {
        let fault = |text: &str| TrainConfig::parse(text, &[]).expect_err("a mistake").to_string();
        assert!(fault("stepz = 7").contains("stepz"));
        assert!(fault("batch = 10\nmicro_batches = 3").contains("micro_batches"));
        assert!(TrainConfig::parse("", &["steps".into()]).is_err());
        for (text, part) in [
            ("learning_rate.peak = nan", "learning_rate.peak is NaN"),
            ("clip = inf", "clip is inf"),
            ("weight_decay = -1.0", "weight_decay is -1"),
            ("epsilon = 0.0", "epsilon"),
            ("label_dropout = nan", "label_dropout"),
            ("averages = [{ decay = 1.0 }]", "decay 1,"),
            ("averages = [{ power = 0.3 }]", "width 0.3"),
            ("averages = [{ power = nan }]", "width NaN"),
            ("averages = [{ power = -0.1 }]", "width -0.1"),
            ("background = []", "background"),
        ] {
            assert!(fault(text).contains(part), "{text}: {}", fault(text));
        }
        let large = TrainConfig::parse("", &["seed=9223372036854775808".into()]);
        let error = large.expect_err("too large").to_string();
        assert!(error.contains("seed is 9223372036854775808, expected at most 9223"), "{error}");
        let large = TrainConfig { seed: u64::MAX, ..TrainConfig::default() };
        assert!(large.with("", &[]).is_err());
        for (setting, part) in [
            (
                "defaults.sampler=foo",
                "defaults.sampler: unknown sampler `foo`, expected one of ddim",
            ),
            ("defaults.sampler={ddim={}}", "there is no `eta`"),
            ("defaults.spacing=foo", "defaults.spacing: unknown scheduler `foo`"),
            ("defaults.cfg_interval=[5]", "`defaults.cfg_interval` is [5], expected a list of 2"),
            ("steps=2.5", "`steps` is 2.5, expected a whole number, 0 or more"),
            ("steps=x", "`steps` is \"x\", expected a whole number"),
            ("model.kind=foo", "`model.kind` is \"foo\", expected one of `dit`"),
            ("patches=[1]", "`patches` is [1], expected a table"),
            ("process.schedule.first=0.1", "unknown key `first`"),
        ] {
            let error = TrainConfig::parse("", &[setting.into()]).expect_err(setting).to_string();
            assert!(error.contains(part), "{setting}: {error}");
        }
        // Its table of timesteps has no row for ln σ.
        let ladder = TrainConfig::parse("", &["model.kind=ladder-e".into()]).expect("valid alone");
        let error =
            ladder.net(3, [64, 64], Condition::Classes(10)).expect_err("no timesteps").to_string();
        assert!(error.contains("table of 1000") && error.contains("ln(σ)"), "{error}");
    }
}

//! Listings: a table for people, one word a line with `-q`, JSON or a template for scripts.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::template::Template;

/// How a listing is shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Format {
    /// Columns under headings.
    Table,
    /// One column without heading.
    Quiet,
    /// One JSON object a line.
    Json,
    /// A template for each element, typed to this verb.
    Template(Template, &'static str),
    /// A template for each element, in columns; the headings are the fields' names.
    Columns(Vec<(String, Template)>, &'static str),
}

/// An element of a listing.
pub(crate) trait Element {
    /// What it shows, by name.
    fn fields(&self) -> &Value;
    /// What `.Label "NAME"` knows.
    fn labels(&self) -> &BTreeMap<String, String>;
}

impl Element for Value {
    fn fields(&self) -> &Value {
        self
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        &NONE
    }
}

/// An element that has labels.
#[derive(Debug)]
pub(crate) struct Labelled {
    pub(crate) fields: Value,
    labels: BTreeMap<String, String>,
}

impl Labelled {
    /// With these labels, which `.Labels` shows as one string.
    pub(crate) fn new<'l>(
        mut fields: Value,
        labels: impl IntoIterator<Item = (&'l String, &'l String)>,
    ) -> Self {
        let labels: BTreeMap<String, String> =
            labels.into_iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let shown: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
        fields["Labels"] = shown.join(",").into();
        Self { fields, labels }
    }
}

impl Element for Labelled {
    fn fields(&self) -> &Value {
        &self.fields
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        &self.labels
    }
}

impl Format {
    /// What `--format` and `-q` mean.
    pub(crate) fn new(format: Option<&str>, quiet: bool, verb: &'static str) -> Result<Self> {
        let bad = |why: String| Error::Usage { what: format!("--format: {why}"), verb: verb.into() };
        match format {
            None | Some("table" | "") => Ok(if quiet { Format::Quiet } else { Format::Table }),
            Some("json") => Ok(Format::Json),
            Some(text) => match text.strip_prefix("table ") {
                Some(columns) => {
                    let columns = columns.replace("\\t", "\t");
                    let column = |text: &str| Template::parse(text).map(|template| (heading(text), template));
                    columns
                        .split('\t')
                        .map(column)
                        .collect::<Result<_, _>>()
                        .map(|columns| Format::Columns(columns, verb))
                        .map_err(bad)
                }
                None => Template::parse(text).map(|template| Format::Template(template, verb)).map_err(bad),
            },
        }
    }

    /// The text of a listing. `columns` are the headings of the table and the fields that stand under them; `quiet` is the
    /// field of `-q`.
    pub(crate) fn show<E: Element>(
        &self,
        rows: &[E],
        columns: &[(&str, &str)],
        quiet: &str,
    ) -> Result<String> {
        let field = |row: &E, name: &str| match row.fields().get(name) {
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
            None => String::new(),
        };
        let fill = |template: &Template, row: &E, verb: &str| {
            let bad = |why| Error::Usage { what: format!("--format: {why}"), verb: verb.into() };
            template.render_row(row.fields(), row.labels()).map_err(bad)
        };
        match self {
            Format::Table => {
                let mut lines = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
                lines.extend(
                    rows.iter().map(|row| columns.iter().map(|(_, name)| field(row, name)).collect()),
                );
                Ok(table(&lines))
            }
            Format::Quiet => Ok(rows.iter().map(|row| field(row, quiet) + "\n").collect()),
            Format::Json => Ok(rows.iter().map(|row| row.fields().to_string() + "\n").collect()),
            Format::Template(template, verb) => {
                rows.iter().map(|row| Ok(fill(template, row, verb)? + "\n")).collect()
            }
            Format::Columns(columns, verb) => {
                let mut lines = vec![columns.iter().map(|(heading, _)| heading.clone()).collect()];
                for row in rows {
                    lines.push(
                        columns
                            .iter()
                            .map(|(_, template)| fill(template, row, verb))
                            .collect::<Result<_>>()?,
                    );
                }
                Ok(table(&lines))
            }
        }
    }
}

/// `{{.ContainerID}}` stands under `CONTAINER ID`.
fn heading(template: &str) -> String {
    let name: String = template.chars().filter(|c| c.is_ascii_alphanumeric()).collect();
    let mut out = String::new();
    let mut previous_is_lower = false;
    for c in name.chars() {
        if c.is_ascii_uppercase() && previous_is_lower {
            out.push(' ');
        }
        previous_is_lower = c.is_ascii_lowercase();
        out.push(c.to_ascii_uppercase());
    }
    out
}

/// Lines of cells in columns three blanks apart.
pub(crate) fn table(lines: &[Vec<String>]) -> String {
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        lines.iter().filter_map(|line| line.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
    let mut out = String::new();
    for line in lines {
        let cells: Vec<String> =
            line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        out.push_str(cells.join("   ").trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn show(format: Option<&str>, quiet: bool) -> String {
        let rows =
            [json!({ "ID": "a1", "ImageName": "long name" }), json!({ "ID": "b22", "ImageName": "x" })];
        let columns = [("IMAGE ID", "ID"), ("NAME", "ImageName")];
        Format::new(format, quiet, "images").unwrap().show(&rows, &columns, "ID").unwrap()
    }

    #[test]
    fn a_listing_is_a_table_words_json_or_a_template() {
        assert_eq!(show(None, false), "IMAGE ID   NAME\na1         long name\nb22        x\n");
        assert_eq!(show(None, true), "a1\nb22\n");
        assert_eq!(
            show(Some("json"), false).lines().next(),
            Some("{\"ID\":\"a1\",\"ImageName\":\"long name\"}")
        );
        assert_eq!(show(Some("{{.ID}}"), false), "a1\nb22\n");
        assert_eq!(
            show(Some("table {{.ImageName}}\\t{{.ID}}"), false),
            "IMAGE NAME   ID\nlong name    a1\nx            b22\n"
        );
    }

    #[test]
    fn a_label_is_found_whatever_its_value_and_those_beside_it_are() {
        let labels = [("note", "a,other=b"), ("other", "c"), ("and", "")];
        let labels: Vec<(String, String)> = labels.map(|(name, value)| (name.into(), value.into())).into();
        let rows = [Labelled::new(json!({ "ID": "a1" }), labels.iter().map(|(name, value)| (name, value)))];
        let show = |text: &str| Format::new(Some(text), false, "ps").unwrap().show(&rows, &[], "ID").unwrap();
        let asked = "{{.Label \"note\"}} {{.Label \"other\"}} <{{.Label \"and\"}}{{.Label \"none\"}}>";
        assert_eq!(show(asked), "a,other=b c <>\n");
        assert_eq!(show(&format!("table {asked}")).lines().nth(1), Some("a,other=b c <>"));
        assert_eq!(show("{{.Labels}}"), "and=,note=a,other=b,other=c\n");
        assert_eq!(show("json"), "{\"ID\":\"a1\",\"Labels\":\"and=,note=a,other=b,other=c\"}\n");
    }

    #[test]
    fn a_bad_template_is_refused() {
        assert!(Format::new(Some("{{"), false, "images").is_err());
        let format = Format::new(Some("{{.Nope}}"), false, "images").unwrap();
        let error = format.show(&[json!({})], &[], "ID").unwrap_err();
        assert_eq!(error.hint().as_deref(), Some("see \"servin images --help\""));
    }
}

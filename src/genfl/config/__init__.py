"""A run's config: its schema, and reading it from YAML with overrides."""

from genfl.config.data import Data, Partition, Public
from genfl.config.generation import ImageGenerator
from genfl.config.methods import Content, Method
from genfl.config.reading import (
    ABSENT,
    default_guidance,
    differences,
    differing_fields,
    dump,
    folder_name,
    generator_section,
    load,
    merge,
    parse,
    plain,
    plain_copy,
    plain_without_inherited,
    put,
    read,
    settings_of,
    validate,
    with_defaults,
)
from genfl.config.schema import Config, json_schema
from genfl.config.section import Section
from genfl.config.training import Model

__all__ = [
    "ABSENT",
    "Config",
    "Content",
    "Data",
    "ImageGenerator",
    "Method",
    "Model",
    "Partition",
    "Public",
    "Section",
    "default_guidance",
    "differences",
    "differing_fields",
    "dump",
    "folder_name",
    "generator_section",
    "json_schema",
    "load",
    "merge",
    "parse",
    "plain",
    "plain_copy",
    "plain_without_inherited",
    "put",
    "read",
    "settings_of",
    "validate",
    "with_defaults",
]

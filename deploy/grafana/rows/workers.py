"""The processes and their machines."""

from __future__ import annotations

from grafana_foundation_sdk.builders import table
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import DataTransformerConfig, DynamicConfigValue
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from rows.panels import SOURCE, Panel, lines, stacked, target
from rows.queries import MODEL, OF_WORKERS, Query, W


def panels() -> list[Panel]:
    """The panels of this row."""
    info = "model, model_version, version, numerics, device, decoder, precision"
    hidden = {"Time": True, "__name__": True, "job": True}
    uptime = DynamicConfigValue("unit", units.DurationSeconds)
    return [
        table.Panel()
        .title("What the workers are")
        .description("What each worker is, and how long its process has lived.")
        .datasource(SOURCE)
        .unit(units.Short)
        .span(16)
        .height(8)
        .override_by_name("up for", [uptime, DynamicConfigValue("decimals", 0)])
        .with_transformation(
            DataTransformerConfig(
                id_val="organize",
                options={"excludeByName": hidden, "renameByName": {"Value": "up for"}},
            )
        )
        .targets(
            [
                target(
                    0,
                    Query(
                        f"(time() - process_start_time_seconds) * on (job, instance) group_left"
                        f" ({info}) pathar_worker_info{{{MODEL}}}",
                        "{{instance}}",
                        PromQueryFormat.TABLE,
                    ),
                )
            ]
        ),
        lines(
            "Starts of a worker",
            "How often the process at an address was started anew within the last hour.",
            units.Short,
            Query(f"changes(process_start_time_seconds[1h]) {OF_WORKERS}", "{{instance}}"),
        )
        .height(8)
        .decimals(0),
        lines(
            "Memory",
            "Resident memory of each process. A worker takes all of it at start.",
            units.BytesIEC,
            Query(f"process_resident_memory_bytes {OF_WORKERS}", "{{model}} at {{instance}}"),
            Query(
                "process_resident_memory_bytes and on (job, instance) pathar_api_info",
                "API at {{instance}}",
            ),
            span=6,
        ),
        lines(
            "Cores in use",
            "CPU seconds a second of each process.",
            units.Short,
            Query(f"rate(process_cpu_seconds_total{W}) {OF_WORKERS}", "{{model}} at {{instance}}"),
            Query(
                f"rate(process_cpu_seconds_total{W}) and on (job, instance) pathar_api_info",
                "API at {{instance}}",
            ),
            span=6,
        ),
        lines(
            "Device in use",
            "Share of time in which a worker's GPU, or else its machine's cores, had any work.",
            units.PercentUnit,
            Query(f"pathar_device_use_ratio{{{MODEL}}}", "{{model}} at {{instance}}"),
            span=6,
        ).max(1),
        stacked(
            "Memory of the device",
            "Used, whoever uses it, and free: a GPU's, or that of the machine or container.",
            units.BytesIEC,
            Query(f"pathar_device_memory_bytes{{{MODEL}}}", "{{state}}, {{model}} at {{instance}}"),
            span=6,
        ),
    ]

"""Puts Delta's jars and a quiet configuration into an environment's pyspark. Standard library only."""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from bootstrap.missing import Missing, run_logged
from bootstrap.stack import ROOT, Stack

REMEDY = "connect, or set DEFAULT_ARTIFACT_REPOSITORY to a Maven repository that this machine reaches"
TEMPLATES = ROOT / "bootstrap/spark_conf"
# Delta's jars alone are fetched, 12 MB of 87. The resolver knows no "all but", hence the groups of the others.
NOT_DELTA = "org.*:*,com.*:*,io.airlift:*,io.unitycatalog:*,commons-*:*,javax.*:*"
# the first line of each file that we wrote, and so may write again
MARK = "# written by bootstrap/spark_files.py"


def artifact(*, spark_version: str, delta_version: str) -> str:
    """Delta's Maven coordinate, which carries Spark's minor version and Scala's."""
    spark_minor = ".".join(spark_version.split(".")[:2])
    return f"io.delta:delta-spark_{spark_minor}_2.13:{delta_version}"


def installed_version(site: Path, package: str) -> str:
    """The version of an installed package, read from the name of its dist-info folder."""
    found = [entry.name for entry in site.glob(f"{package}-*.dist-info")]
    if len(found) != 1:
        raise Missing(f"{site} holds {len(found)} versions of {package}, not one: run make clean, then again")
    return found[0].removeprefix(f"{package}-").removesuffix(".dist-info")


def has_jars(pyspark: Path, coordinate: str) -> bool:
    """Whether the jar that the coordinate names lies in pyspark/jars."""
    _, name, version = coordinate.split(":")
    return (pyspark / "jars" / f"{name}-{version}.jar").exists()


def install_jars(pyspark: Path, stack: Stack, *, coordinate: str, java_home: Path) -> None:
    """Resolve Delta with Spark's own resolver and copy its jars into pyspark/jars.

    Only those of the group io.delta (delta-spark, delta-storage, delta-kernel): the 28 others that it asks for are a
    Unity Catalog client and libraries that Spark has, in versions that would shadow Spark's.

    Raises:
        Missing: the resolver cannot reach a repository.
    """
    ivy = stack.log("ivy").with_suffix("")
    nothing = ivy / "nothing.py"
    ivy.mkdir(parents=True, exist_ok=True)
    nothing.write_text("", encoding="utf-8")
    # what an earlier version left there must not be copied
    shutil.rmtree(ivy / "jars", ignore_errors=True)
    submit = str(pyspark / "bin/spark-submit")
    words = ["--packages", coordinate, "--exclude-packages", NOT_DELTA, "--conf", f"spark.jars.ivy={ivy}"]
    env = resolver_environment(os.environ, pyspark=pyspark, java_home=java_home, conf=ivy)
    run_logged([submit, *words, nothing], log=stack.log("ivy"), what="fetching Delta's jars", remedy=REMEDY, env=env)
    for stale in (pyspark / "jars").glob("delta-*.jar"):
        stale.unlink()
    for jar in (ivy / "jars").glob("io.delta_*.jar"):
        copy_whole(jar, pyspark / "jars" / jar.name.removeprefix("io.delta_"))


def resolver_environment(environ: Mapping[str, str], *, pyspark: Path, java_home: Path, conf: Path) -> dict[str, str]:
    """The environment in which Spark's resolver runs: this Spark and Java, no configuration, the user's proxy."""
    env = {name: value for name, value in environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    env |= {
        "SPARK_HOME": str(pyspark),
        "SPARK_CONF_DIR": str(conf),
        "JAVA_HOME": str(java_home),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    env["PYSPARK_PYTHON"] = str(pyspark.parents[3] / "bin/python")
    proxy = urlsplit(environ.get("HTTPS_PROXY") or environ.get("https_proxy") or "")
    # a JVM reads no proxy variables
    if proxy.hostname:
        env["SPARK_SUBMIT_OPTS"] = f"-Dhttps.proxyHost={proxy.hostname} -Dhttps.proxyPort={proxy.port or 443}"
    return env


def copy_whole(source: Path, target: Path) -> None:
    """Copy so that an interrupted set-up leaves no half a jar under the final name."""
    partial = target.with_suffix(".partial")
    shutil.copyfile(source, partial)
    partial.replace(target)


def write_conf(pyspark: Path, values: Mapping[str, str]) -> list[Path]:
    """Write the templates into pyspark/conf, `@NAME@` replaced by its value; a file that is not ours stays as it is.

    Returns the files that were left alone.
    """
    foreign = []
    (pyspark / "conf").mkdir(exist_ok=True)
    for template in sorted(TEMPLATES.iterdir()):
        target = pyspark / "conf" / template.name
        if target.exists() and not target.read_text(encoding="utf-8", errors="replace").startswith(MARK):
            foreign.append(target)
            continue
        text = re.sub(r"@([A-Z_]+)@", lambda match: values[match.group(1)], template.read_text(encoding="utf-8"))
        partial = target.with_suffix(".partial")
        partial.write_text(text, encoding="utf-8")
        partial.replace(target)
    return foreign

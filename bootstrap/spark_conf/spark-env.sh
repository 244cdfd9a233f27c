# written by bootstrap/spark_files.py; delete this line and the file is yours
# Sourced by every start of Spark from this virtual environment: spark-submit, pyspark, and a session made in plain Python.

# Yours, where JAVA_HOME names another Java that Spark can run on; else the one that set-up found or brought.
case "${JAVA_HOME:-}" in
  @JAVA_HOMES_REPLACED@) JAVA_HOME=@JAVA_HOME@ ;;
esac

# executors start their Python by this name, not through the activated environment
PYSPARK_PYTHON="${PYSPARK_PYTHON:-@PYTHON@}"

# without it Spark looks up the host's name, and warns when that is a loop-back address
SPARK_LOCAL_IP="${SPARK_LOCAL_IP:-127.0.0.1}"

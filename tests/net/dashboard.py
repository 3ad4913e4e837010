"""Asks a Prometheus what a Grafana dashboard would: dashboard.py DASHBOARD SCRAPE URL.

SCRAPE is the text of a gateway's /metrics. Says what is wrong, one line each, with exit code 1: an expression that does
not parse, that names a metric which is not in the scrape, or that has no answer.
"""

import json
import re
import sys
import urllib.error
import urllib.parse
import urllib.request

# What Grafana puts in, as of a Prometheus that scrapes every second.
VARIABLES = {"$__rate_interval": "10s", "$job": ".*", "$instance": ".*"}


def filled(text):
    for name, value in VARIABLES.items():
        text = text.replace(name, value)
    return text


def answers(url, expression):
    """How many series answer; raises ValueError with what Prometheus says."""
    question = urllib.parse.urlencode({"query": filled(expression)})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{question}", timeout=5) as answer:
            return len(json.load(answer)["data"]["result"])
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from error


def wrong(url, metrics, expression):
    """What is wrong with one expression, or None."""
    unknown = sorted(set(re.findall(r"\b(?:culvert|process)_[a-z_]+", expression)) - metrics)
    if unknown:
        return f"there is no metric {', '.join(unknown)}"
    try:
        return None if answers(url, expression) else f"no answer to {expression}"
    except ValueError as error:
        return f"{error} in {expression}"


def main(dashboard, scrape, url):
    with open(dashboard, encoding="utf-8") as file:
        dashboard = json.load(file)
    with open(scrape, encoding="utf-8") as file:
        metrics = {re.match(r"[a-z_]+", line).group() for line in file if line[:1].isalpha()}
    questions = [(panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", ())]
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            questions.append((variable["name"], re.fullmatch(r"label_values\((.*), \w+\)", variable["definition"])[1]))
    found = [(title, wrong(url, metrics, expression)) for title, expression in questions]
    found = [f"{title}: {what}" for title, what in found if what]
    print("\n".join(found) or f"{len(questions)} questions, all answered")
    return bool(found)


sys.exit(main(*sys.argv[1:]))

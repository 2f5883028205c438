"""Mean temperature by station and quarter of the year from measurements.csv, left as report.txt."""

import csv
from collections import defaultdict
from statistics import fmean

QUARTERS = ("Q1", "Q2", "Q3", "Q4")

by_station = defaultdict(lambda: defaultdict(list))
with open("measurements.csv", newline="") as file:
    for row in csv.DictReader(file):
        quarter = QUARTERS[int(row["day"]) % 365 // 92]
        by_station[row["station"]][quarter].append(float(row["celsius"]))

with open("report.txt", "w") as report:
    print(f"{'station':<10}" + "".join(f"{quarter:>8}" for quarter in QUARTERS) + "  year", file=report)
    for station, quarters in sorted(by_station.items()):
        means = [fmean(quarters[quarter]) for quarter in QUARTERS]
        bar = "#" * round(fmean(means))
        print(f"{station:<10}" + "".join(f"{mean:8.1f}" for mean in means) + f"  {bar}", file=report)
print(f"{sum(len(v) for s in by_station.values() for v in s.values())} measurements read")

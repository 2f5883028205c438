// Shortest paths from node 0 to every other node: Dijkstra's algorithm over a directed graph.
// Input: "NODES EDGES", then one "FROM TO LENGTH" a line. Output: nodes reached, the largest
// distance and its node, and a checksum over all distances.
#include <cstdint>
#include <cstdio>
#include <functional>
#include <limits>
#include <queue>
#include <utility>
#include <vector>

int main() {
    int nodes, edges;
    if (std::scanf("%d %d", &nodes, &edges) != 2) return 2;
    std::vector<std::vector<std::pair<int, int>>> out(nodes);
    for (int i = 0; i < edges; i++) {
        int from, to, length;
        if (std::scanf("%d %d %d", &from, &to, &length) != 3) return 2;
        out[from].emplace_back(to, length);
    }

    const int64_t unreached = std::numeric_limits<int64_t>::max();
    std::vector<int64_t> distance(nodes, unreached);
    using Entry = std::pair<int64_t, int>;
    std::priority_queue<Entry, std::vector<Entry>, std::greater<>> queue;
    distance[0] = 0;
    queue.emplace(0, 0);
    while (!queue.empty()) {
        auto [here, node] = queue.top();
        queue.pop();
        if (here > distance[node]) continue;
        for (auto [to, length] : out[node]) {
            if (here + length < distance[to]) {
                distance[to] = here + length;
                queue.emplace(distance[to], to);
            }
        }
    }

    int reached = 0, farthest = 0;
    uint64_t checksum = 0;
    for (int node = 0; node < nodes; node++) {
        if (distance[node] == unreached) continue;
        reached++;
        if (distance[node] > distance[farthest]) farthest = node;
        checksum = (checksum * 31 + static_cast<uint64_t>(distance[node])) % 1000000007;
    }
    std::printf("%d reached, farthest %d at %lld, checksum %llu\n", reached, farthest,
                static_cast<long long>(distance[farthest]), static_cast<unsigned long long>(checksum));
}

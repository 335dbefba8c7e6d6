"""Secure aggregation against a server that may lie: state machines without input or output. With a helper: `helper.py`. In pairs: by the
protocol of Bonawitz et al. (CCS 2017).

Section 4 and figure 4 there, with the signatures and the check of consistency of section 6. One sum takes five exchanges:

| | server to client | client to server |
|---|---|---|
| 0 | broadcast and cohort | two X25519 keys, signed (`SumClient.advertise`) |
| 1 | everybody's keys: U1 | shares of the own secrets, one sealed to each (`share`) |
| 2 | the shares sealed to the client, of those who sent some: U2 | its masked words (`masked`) |
| 3 | whose words have come: U3 | a signature of U3 (`confirm`) |
| 4 | those signatures | of each client of U3 a share of its own mask; of each that was lost, of its key (`reveal`) |

At least t clients answer each exchange. Deviations: ChaCha20-Poly1305 seals shares, AES-256 in counter mode makes masks; what is signed at
step 3 is U3 together with a digest of all keys that the client saw, so that nothing of another sum fits; t must be above (n + c) / 2 for c
colluders, as their theorem for an active server asks.
"""

"""What the pages of Google and Amazon say of AlloyDB and Redshift that matters to whoever connects through a tunnel."""

_SSL_MODES = (
    "https://docs.cloud.google.com/dotnet/docs/reference/Google.Cloud.AlloyDb.V1/latest/"
    "Google.Cloud.AlloyDb.V1.SslConfig.Types.SslMode"
)

ALLOYDB = f"""\
## AlloyDB

Of November 2026, from [Google's pages](https://cloud.google.com/alloydb/docs/connection-overview); nothing of it was
tried against AlloyDB itself.

| port of an instance | who speaks there | through a tunnel |
| --- | --- | --- |
| 5432 | PostgreSQL, for direct connections | the default |
| 6432 | its own pooler, where it is on | `spec.database.port: 6432`; Google has it for direct connections alone |
| 5433 | the Auth Proxy and the language connectors, in TLS with certificates of their own | no |

- **Connectors do not go through a tunnel.** They ask the Admin API (HTTPS) for the instance's address and for a
  certificate of a day, and connect to that address at 5433; no host or port of yours takes its place. Use a plain
  driver instead. Where the instance takes connectors alone (`--require-connectors`), run the Auth Proxy on the bastion,
  at 127.0.0.1:5432, and lead the tunnel to it: `spec.database.host: 127.0.0.1`. The proxy then ends TLS and does the
  login by IAM; between it and the client is SSH, and the cluster's network in the clear.
- **Logins by IAM without the proxy**: user is the account's address (a service account's without
  `.gserviceaccount.com`), the password an OAuth 2.0 token (`gcloud auth print-access-token`). A token is as good as a
  password and is over after an hour or so: send it in verified TLS alone, and have the pool fetch one for each new
  connection. A session goes on without it. The tunnel sees none of that.
- **TLS** is demanded unless the instance's `ssl-mode` is `ALLOW_UNENCRYPTED_AND_ENCRYPTED`. The certificate is signed
  by an authority of the cluster's own. The message of `DatabaseReachable` says which names it bears; with an address
  for `spec.database.host` none of them is likely to be it. Then either `sslmode=verify-ca` with that authority, which
  is nobody else's, or such a name as `spec.database.tls.serverName`, and `verify-full` ([tls.md](tls.md)).
- **Idle connections**: Google's network forgets a connection without a packet in ten minutes, without a word to either
  end. That is the stretch from the bastion to the instance: see [above](#how-long-lived-sessions-are-kept-alive). The
  instance itself ends sessions by PostgreSQL's own settings (`idle_session_timeout`,
  `idle_in_transaction_session_timeout`), which are off unless set. The pooler, in its transaction mode, gives a session
  to others between transactions: do not count on what `SET` or `options=-c ...` has set there.

Sources: [ports and connectors](https://cloud.google.com/alloydb/docs/enforce-connectors),
[Auth Proxy](https://cloud.google.com/alloydb/docs/auth-proxy/overview),
[pooler](https://cloud.google.com/alloydb/docs/configure-managed-connection-pooling),
[logins by IAM](https://cloud.google.com/alloydb/docs/connect-iam),
[SSL modes]({_SSL_MODES}),
[ten minutes](https://cloud.google.com/compute/docs/troubleshooting).
"""
"""As Markdown."""

REDSHIFT = """\
## Redshift

Of November 2026, from Amazon's pages and its drivers; nothing of it was tried against Redshift itself.

- **Host**: the endpoint's own name, `NAME.ID.REGION.redshift.amazonaws.com`, or a workgroup's
  (`...redshift-serverless.amazonaws.com`), which the bastion resolves. All of a session goes to that one address, the
  leader node's: there is no redirection to others. COPY and UNLOAD are between Redshift and S3, and not in the tunnel.
- **TLS**: the parameter `require_ssl` of the cluster's parameter group demands it. The certificate is Amazon's, for the
  endpoint's name, and signed by an authority that systems trust; Amazon has it as [a
  bundle](https://s3.amazonaws.com/redshift-downloads/amazon-trust-ca-bundle.crt) too. How its drivers verify it is in
  [tls.md](tls.md#redshift_connector).
- **Logins by IAM, done by the driver**: `redshift_connector` with `iam=True` gets user and password from Amazon's API
  (GetClusterCredentials), and host and port too where either is left out: then it goes past the tunnel, and finds
  nothing. Give both, and `cluster_identifier`, `db_user` and `region`, or `is_serverless=True` with
  `serverless_work_group`. It takes a host that is none of Amazon's for a custom domain, asks for that, and goes on by
  the identifier when nobody knows it. Tried with its version 2.2.0 and an API of the test's own; its first
  versions took the API's host whatever was given. Two ways that need no such driver:
  1. Get user and password first (`aws redshift get-cluster-credentials`; serverless: `aws redshift-serverless
     get-credentials`), and connect with these, without `iam`. They hold for 15 minutes, up to an hour where asked for,
     and are needed at the login alone.
  2. Have [the endpoint's name lead to the Service](tls.md#clients-that-have-no-setting) in the application's pods. Then
     the driver need not know of the tunnel, and `verify-full` finds the name that it wants.
- **The API is not in the tunnel.** Whoever calls it needs a way to Amazon's HTTPS endpoints, and credentials of
  Amazon's.
- **Idle sessions** end after 4 hours, on serverless workgroups after 1, and transactions in which nothing happens after
  6. A user's `SESSION TIMEOUT` is stronger than the first. A Network Load Balancer, and what is made of one (VPC
  endpoints), forgets a connection that is silent for 350 s. So have a pool renew its sessions within four hours, and
  ask for something within five minutes: Redshift has no `tcp_keepalives_idle`.
- **Connections**: a cluster takes a limited number (500 to 2,000, by its kind), and says `connection limit ...
  exceeded`.

Sources: [TLS](https://docs.aws.amazon.com/redshift/latest/mgmt/connecting-ssl-support.html),
[limits and idle times](https://docs.aws.amazon.com/redshift/latest/mgmt/amazon-redshift-limits.html),
[SESSION TIMEOUT](https://docs.aws.amazon.com/redshift/latest/dg/r_ALTER_USER.html),
[GetClusterCredentials](https://docs.aws.amazon.com/redshift/latest/APIReference/API_GetClusterCredentials.html),
[redshift_connector](https://github.com/aws/amazon-redshift-python-driver) (`iam_helper.py`),
[dbt](https://github.com/dbt-labs/dbt-redshift/issues/729) of serverless hosts behind a tunnel,
[350 s](https://aws.amazon.com/blogs/networking-and-content-delivery/introducing-nlb-tcp-configurable-idle-timeout/).
"""
"""As Markdown."""
